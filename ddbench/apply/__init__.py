"""What a distilled set is good for besides one accuracy: controls, continual learning, architecture search.

May import: boards, suite, results, files and below. Start with ``controls``, which tells how much of an accuracy is
due to images, to labels, to augmentation.
"""
