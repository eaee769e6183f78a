"""The registered model: its versions, the gate before `champion`, and the way back. Start reading at `register`.

`register` makes the models that a training kept (`kept_models`) versions with an MLflow model (`mlflow_model`), a model card,
and files for people (`run_artifacts`, `loss_plot`); `versions` says what their tags mean and prunes them. `promotion` moves the
aliases by the rule of `gate`, which compares with the champion's loss on the same conversations (`champion_loss`). It imports
talaria.tracking, never the other way round.
"""
