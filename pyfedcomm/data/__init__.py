"""Training data of one cloud: text -> tokens -> sequences.

``sources`` reads documents (``stdlib`` is the source that needs no files), ``partition`` says which
cloud gets which, where they all see the same, ``tokenizers`` turns text into numbers, ``corpus``
makes token files of them (``tokenfile``) and keeps a part out of training. ``deal`` says which
cloud trains on which sequences, ``stream`` in which order a rank has them, ``prefetch`` makes them
ahead. Nothing here communicates: callers make errors and counts known to the other ranks.
"""
