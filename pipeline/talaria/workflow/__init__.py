"""What spans several stages without Airflow: the whole pipeline in one process, and tokenisation in parts."""
