"""The stage evaluate: held-out loss and greedy answers of the tuned model beside its base's."""
