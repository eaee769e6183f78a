"""Check what a run is given: a typed form, and the formats through which Airflow asks Talaria."""
