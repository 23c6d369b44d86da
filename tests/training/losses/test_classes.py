"""Classes that distributions are compared over: clusters of codes, and their k-means."""

import pytest
import torch

from delvm.errors import UserError
from delvm.training.losses import CodeClusters, KLDivergence, TopK
from delvm.training.losses.classes import merge
from delvm.training.losses.kmeans import kmeans


def codebook_of_groups(groups: int, codes_per_group: int) -> torch.Tensor:
    """Codes in tight groups, in a shuffled order."""
    torch.manual_seed(0)
    centers = 10 * torch.randn(groups, 4)
    codes = centers.repeat(codes_per_group, 1) + 0.01 * torch.randn(groups * codes_per_group, 4)
    return codes


def test_kmeans_finds_groups():
    clusters = kmeans(codebook_of_groups(5, 4), 5)
    by_group = clusters.view(4, 5)  # code i is of group i % 5
    assert (by_group == by_group[0]).all() and len(set(by_group[0].tolist())) == 5


def test_kmeans_is_seeded_and_leaves_other_random_numbers_alone():
    vectors = torch.randn(60, 3)
    state = torch.get_rng_state()
    first = kmeans(vectors, 9, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(7)
    assert torch.equal(first, kmeans(vectors, 9, seed=1))
    assert not torch.equal(first, kmeans(vectors, 9, seed=2))


def test_kmeans_is_a_fixed_point():
    vectors = torch.randn(60, 3, dtype=torch.float64)
    clusters = kmeans(vectors, 9)
    centers = torch.stack([vectors[clusters == each].mean(0) for each in range(9)])
    assert torch.equal(torch.cdist(vectors, centers).argmin(1), clusters)


@pytest.mark.parametrize("num_clusters", [1, 7, 8])
def test_kmeans_has_no_empty_cluster(num_clusters):
    vectors = torch.zeros(8, 3)  # unused codes may be equal
    vectors[0] = 1
    assert set(kmeans(vectors, num_clusters).tolist()) == set(range(num_clusters))


def test_kmeans_of_nan_is_an_error():
    with pytest.raises(UserError, match="not finite"):
        kmeans(torch.full((4, 2), float("nan")), 2)


def test_merge_adds_the_probabilities_of_a_cluster():
    torch.manual_seed(0)
    probs = torch.rand(3, 6).softmax(-1)
    merged = merge(probs.log(), torch.tensor([0, 1, 0, 2, 2, 2]), 3).exp()
    expected = torch.stack(
        (probs[:, 0] + probs[:, 2], probs[:, 1], probs[:, 3] + probs[:, 4] + probs[:, 5]), 1
    )
    assert torch.allclose(merged, expected, atol=1e-6)


def test_merge_of_tiny_probabilities_does_not_underflow():
    log_probs = torch.tensor([[0.0, -500.0, -500.0]], requires_grad=True)
    merged = merge(log_probs, torch.tensor([0, 1, 1]), 2)
    assert merged[0, 1].item() == pytest.approx(-500 + torch.tensor(2.0).log().item())
    merged[0, 1].backward()
    assert log_probs.grad.tolist() == [[0.0, 0.5, 0.5]]


def test_codes_of_a_cluster_are_not_distinguished():
    """All of the teacher's weight on one code of a cluster, the student's on another."""
    classes = CodeClusters(codes_per_cluster=4)
    classes.connect_codebook(codebook_of_groups(5, 4))
    logits = torch.zeros(2, 20)
    logits[0, 3], logits[1, 8] = 20, 20  # 3 and 8 are of one group
    teacher, student = torch.log_softmax(logits, -1).split(1)
    assert KLDivergence()(teacher, student).item() > 15
    assert KLDivergence()(*classes(teacher, student)).item() == pytest.approx(0, abs=1e-6)
    logits[1, 8], logits[1, 9] = 0, 20  # 9 is of another group
    teacher, student = torch.log_softmax(logits, -1).split(1)
    assert KLDivergence()(*classes(teacher, student)).item() > 15


def test_clusters_of_one_code_are_all_tokens():
    classes = CodeClusters(codes_per_cluster=1)
    classes.connect_codebook(torch.randn(7, 3))
    pair = torch.randn(2, 4, 7).log_softmax(-1)
    assert torch.allclose(KLDivergence()(*classes(*pair)), KLDivergence()(*pair), atol=1e-6)


def test_ids_beyond_the_codebook_are_a_class_each():
    classes = CodeClusters(codes_per_cluster=7)
    classes.connect_codebook(torch.randn(7, 3))
    probs = torch.randn(2, 4, 9).softmax(-1)
    teacher, _ = classes(*probs.log())
    assert torch.allclose(teacher.exp()[:, 1:], probs[0, :, 7:], atol=1e-6)


def test_clusters_are_kept_in_checkpoints():
    classes, resumed = CodeClusters(2), CodeClusters(2)
    classes.connect_codebook(torch.randn(8, 3))
    resumed.connect_codebook(torch.randn(8, 3))
    resumed.load_state_dict(classes.state_dict())
    assert torch.equal(resumed.clusters, classes.clusters)


def test_top_k_must_leave_a_tail():
    TopK(7).connect_codebook(torch.zeros(8, 3))
    words = r"module.loss.classes.k=8 >= 8 codes: set module.loss.classes.k=4 or"
    with pytest.raises(UserError, match=words):
        TopK(8).connect_codebook(torch.zeros(8, 3))


def test_settings_of_classes_out_of_range_are_named():
    assert TopK(0).validate() == ["k=0 is below 1: set it to 16"]
    assert CodeClusters(0.5).validate() == ["codes_per_cluster=0.5 is below 1: set it to 4"]
    assert not TopK().validate() and not CodeClusters().validate()
