"""The parts of ``bench_quality.py``: points, runs, table and plot, and the text to train on."""
