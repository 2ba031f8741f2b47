"""How well each objective learns for its compute: the matrix of trainings, its tables, its bars.

    studies.py    what is run: data sets, objectives, aids, seeds, budgets (the table to check)
    datasets.py   data sets derived from others: values held out, one label an image, noise, a part
    runner.py     trains and evaluates one run by main.py, several at once; appends to the results
    boxes.py      how much of an attention map lies in the true boxes
    published.py  the published mode beside an older checkout, in alternating pairs
    results.py    the file of results, a JSON line a run
    tables.py     Markdown tables, and the bars
    command.py    the command line: python benchmarks/learning --help

A budget is counted in image-forwards of training: an image batch of 96 costs 96, 32 triplets cost 96; a local branch
adds its crops, one for each label of an image. All scores are in [0, 1].
"""
