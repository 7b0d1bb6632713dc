import torch
from ddbench_class_means import ClassMeans, class_means

from ddbench.testing import check_matcher, toy_task


def test_it_keeps_the_contract():
    check_matcher(ClassMeans(batch_real=16))


def test_means_are_those_of_each_class():
    features, labels = torch.tensor([[1.0], [3.0], [8.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert class_means(features, labels).tolist() == [[2.0], [8.0]]


def test_the_loss_falls():
    task, matcher = toy_task(ipc=2), ClassMeans(batch_real=16)
    state, losses = matcher.init(task), []
    for k in range(30):
        state, metrics = matcher.step(task, state, k)
        losses.append(float(metrics["loss"]))
    assert sum(losses[-5:]) < sum(losses[:5])
