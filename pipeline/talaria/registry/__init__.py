"""The registered model: its versions, the gate before `champion`, and the way back. Start reading at `register`.

`register` makes the models that a training kept (`kept_models`) versions with an MLflow model (`mlflow_model`), a model card,
and files for people (`run_artifacts`, `loss_plot`); `versions` says what their tags mean and prunes them. The package
`promotion` moves the aliases. All of it imports talaria.tracking, never the other way round.
"""
