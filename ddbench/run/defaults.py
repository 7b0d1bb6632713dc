"""The plugins that the harness itself asks for by name: what a run is if nothing is said, and what stands beside it."""

DATASET, MATCHER, SCHEDULER, NETWORK = "digits", "tesla", "single", "convnet"
ONE_STAGE = SCHEDULER  # tables do not name it
BASELINE = "random"  # real images: what every distilled set is to beat
CORESETS = (BASELINE, "k-center", "herding")  # real images in the matrix of controls
MEMORIES = (BASELINE, "herding")  # of real images, in continual learning
