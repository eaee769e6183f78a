"""The registered model: its versions, the gate before `champion`, and the way back. Start reading at `register`.

`register` makes the models that a training kept (`kept`) versions with an MLflow model (`mlmodel`) and a model card (`card`);
`versions` says what their tags mean and prunes them. `promotion` moves the aliases by the rule of `gate`, which compares with
the champion's loss on the same conversations (`rival`). It imports
talaria.tracking, never the other way round.
"""
