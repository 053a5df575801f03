"""The benchmark suite: understudy beside a loop written by hand and beside torchdistill, in one run on one machine."""
