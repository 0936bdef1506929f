"""Training data of one cloud: text -> tokens -> sequences; the data never leaves the cloud.

``sources`` reads documents, ``stdlib`` is the source that needs no files, ``tokenizers`` turns
text into numbers, ``corpus`` holds the tokens and keeps a part out of training, ``stream`` deals
sequences to ranks. Nothing here communicates: callers make errors known to the other ranks.
"""
