"""Several trainings that differ in settings of `train`, on one data revision: which, which stop early, which is the best."""
