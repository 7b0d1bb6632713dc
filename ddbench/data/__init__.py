"""Real data: examples, splits, stored pixels, preprocessing, augmentation and mixing.

May import: base. Start with ``dataset``, whose ``RealData`` is what every matcher is given.
"""
