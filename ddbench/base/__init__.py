"""What everything stands on, and nothing about distillation: seeds, files, tensors, options, processes.

May import: errors. Start with ``seeds`` (randomness by address) and ``cache`` (bytes on disk that can be trusted);
``options`` makes records of frozen dataclasses, ``state`` makes files of a matcher's state.
"""
