#!/bin/sh
# Runs once, when PostgreSQL's data folder is new: a role and two databases of MLflow's own.
set -eu
psql --quiet --set=ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<SQL
\\getenv password MLFLOW_DB_PASSWORD
CREATE ROLE mlflow LOGIN PASSWORD :'password';
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE mlflow_auth OWNER mlflow;
SQL
