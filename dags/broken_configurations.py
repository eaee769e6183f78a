"""No DAG, but the place where Airflow shows, as import error, which configurations do not validate and why.

It is a file of its own, so that one broken configuration does not stop the schedules of the others.
"""

from talaria_airflow.dag.scheduling import refuse_broken_configs

refuse_broken_configs()
