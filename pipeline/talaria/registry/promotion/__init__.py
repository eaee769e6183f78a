"""Which version is the champion. Start reading at `promote`.

`gate_numbers` collects what the gate decides on, with the champion measured on the candidate's conversations (`champion_loss`);
`gate` decides by mean losses, `noise_rule` beyond noise. `rollback` is the way back, `champion` tells who it is.
"""
