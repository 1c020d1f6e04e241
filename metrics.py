"""What a trained network is worth: accuracy, proxy A-distance, validation scores that need no label, and warnings.

The validation scores (validators) are computed from the network's answers on the target alone. Which of them goes with
the true accuracy, and where each fails, stands in lab/ with the runs behind it.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cache import Stored
from dataset import Domain, as_input, some_rows
from losses import entropy, entropy_and_diversity
from model import DANN, TARGET

EVAL_BATCH = {"cpu": 128}  # 1.0 to 1.09 times the rate of 64, which had 1.4 times that of 512; elsewhere 2048
PHOTO_BATCH = {"cpu": 8}  # of images for a backbone, 1.5 times the rate of 32; elsewhere 256
MINIMUM = 10  # images of a domain for which a proxy A-distance, or a doubt in the answers, means anything
VALIDATORS = ("information", "snd", "bnm", "class_ami", "iw", "mixval")  # of each higher is better
SCORES = ("entropy", "diversity", *VALIDATORS)

# Answers


def predict(
    net: DANN,
    images: Tensor | Stored,
    batch_size: int | None = None,
    domain: int | None = None,
    precision: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Features float32 [N, F] and class probabilities float32 [N, K] on the CPU.

    images: uint8 [N, H, W, 3] of `domain`, whose BatchNorm statistics are used (None: the network's predict_as), or
    features [N, C] of its frozen backbone.
    batch_size: None for one that suits the device. precision: of the forward pass. Puts the network in evaluation mode
    for the call: running statistics, no dropout.
    """
    training = net.training
    net.eval()
    features, probabilities = [], []
    with torch.inference_mode(), torch.autocast(net.device.type, precision, enabled=precision != torch.float32):
        size = batch_size or eval_batch(net, images)
        for start in range(0, len(images), size):
            f = net.features(as_input(images[start : start + size].to(net.device)), domain)  # [B, F]
            features.append(f.float().cpu())
            probabilities.append(net.label_classifier(f).float().softmax(1).cpu())  # [B, K]
    net.train(training)
    return torch.cat(features), torch.cat(probabilities)


def eval_batch(net: DANN, images: Tensor | Stored) -> int:
    """Images a forward pass without a gradient."""
    if net.preprocessing and len(images.shape) == 4:
        return PHOTO_BATCH.get(net.device.type, 256)
    return EVAL_BATCH.get(net.device.type, 2048)


@dataclass
class Answers:
    """What a network says of one set: features [N, F], probabilities [N, K], and which are right where labels exist."""

    features: Tensor
    probabilities: Tensor
    right: Tensor | None  # bool [N]

    @property
    def accuracy(self) -> float | None:
        """0..1, None without labels."""
        return self.right.sum().item() / len(self.right) if self.right is not None else None


def answers(net: DANN, data: Domain | None, domain: int | None = None) -> Answers | None:
    """Predict a set, beside its labels where it has them; None where there is nothing to predict."""
    if data is None or len(data) == 0:
        return None
    features, probabilities = predict(net, data.inputs, domain=domain)
    right = probabilities.argmax(1) == data.labels if data.labels is not None else None
    return Answers(features, probabilities, right)


def accuracy_of(found: Answers | None) -> float | None:
    """Accuracy 0..1, None where it was not measured."""
    return found.accuracy if found else None


# The distance of the domains


def domain_distance(features_s: Tensor, features_t: Tensor) -> float | None:
    """Proxy A-distance: how well a linear classifier tells two domains apart, 2 (1 - 2 err), 0 not at all, 2 perfectly.

    features_s [N, F], features_t [M, F]: of held-out images; err is the share on which tell_apart is wrong. Chance can
    carry it below 0. None with under 10 images of a domain. Source: Ben-David et al. 2007; arXiv 1505.07818, section
    3.2 and 5.1, with a linear SVM.
    """
    if min(len(features_s), len(features_t)) < MINIMUM:
        return None
    return distance_of(tell_apart(features_s, features_t)[0])


def distance_of(p_target: Tensor) -> float:
    """The proxy A-distance of what tell_apart returns."""
    right = torch.cat([p_target[: len(p_target) // 2] < 0.5, p_target[len(p_target) // 2 :] > 0.5])
    return 2.0 * (2.0 * right.double().mean().item() - 1.0)


def tell_apart(features_s: Tensor, features_t: Tensor, limit: int = 2000) -> tuple[Tensor, Tensor]:
    """How likely images are of the target by their features, and which of the source were asked about.

    features_s [N, F], features_t [M, F]; as many of each are drawn, n of `limit` at most. Returns float64 [2n], of the
    source's images first, each by a logistic regression over 5 folds that it is not in, and the rows int64 [n] of
    features_s.
    """
    from sklearn.exceptions import ConvergenceWarning  # here, as it takes a second that a start need not wait
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    count = min(len(features_s), len(features_t), limit)
    generator = torch.Generator().manual_seed(0)
    rows_s, rows_t = (torch.randperm(len(f), generator=generator)[:count] for f in (features_s, features_t))
    x = torch.cat([features_s[rows_s], features_t[rows_t]]).double().numpy()
    d = torch.arange(2).repeat_interleave(count).numpy()
    order = torch.randperm(2 * count, generator=generator)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 300 iterations are near enough
        found = cross_val_predict(classifier, x[order], d[order], cv=5, method="predict_proba")[:, TARGET]
    p_target = torch.empty(2 * count, dtype=torch.float64)
    p_target[order] = torch.from_numpy(found)
    return p_target, rows_s


# Validation scores


def soft_neighbourhood_density(p: Tensor, temperature: float = 0.05) -> float:
    """How densely each image's answer is surrounded by like answers, 0..log(N - 1); higher is better.

    p: probabilities [N, K]. The mean entropy of softmax(S_i / temperature) over the other images j, S_ij the cosine of
    the probabilities of i and j; 0 of a single image. Source: Saito et al., arXiv 2108.10860.
    """
    if len(p) < 2:
        return 0.0
    direction = F.normalize(p.double(), dim=1)
    similarity = direction @ direction.T / temperature  # [N, N]
    similarity.fill_diagonal_(-math.inf)
    return entropy(similarity.softmax(1)).mean().item()


def batch_nuclear_norm(p: Tensor) -> float:
    """How sure and how varied the answers are: sum of the singular values of p [N, K] over its bound, 0..1.

    The bound, sqrt(N min(N, K)), is reached by sure answers that have each class alike. Source: Cui et al., arXiv
    2003.12237; as a validator Musgrave et al., arXiv 2208.07360.
    """
    return torch.linalg.matrix_norm(p.double(), "nuc").item() / math.sqrt(len(p) * min(p.shape))


def class_ami(p: Tensor, features: Tensor) -> float:
    """How far the answers p [N, K] are the clusters of the features [N, F]: adjusted mutual information, 1 at best.

    Clusters: k-means of the features at unit length, K of them. 0 for one answer alone, which tells nothing apart, and
    for no more images than classes. Source: Musgrave et al., arXiv 2208.07360.
    """
    if len(p) <= p.shape[1] or len(p.argmax(1).unique()) < 2:
        return 0.0
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import adjusted_mutual_info_score

    clusters = KMeans(p.shape[1], n_init=3, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct features than clusters
        found = clusters.fit_predict(F.normalize(features.double(), dim=1).numpy())
    return float(adjusted_mutual_info_score(p.argmax(1).numpy(), found))


def importance_weighted_accuracy(right: Tensor, p_target: Tensor) -> float:
    """Accuracy 0..1 on source images, each weighed by how much likelier its features are in the target.

    right: bool [n], p_target: float [n], the probability that an image is of the target, asked of as many images of
    each domain; w = p / (1 - p), and the sum of w right over that of w. Source: Sugiyama et al., JMLR 2007; with
    features You et al., ICML 2019.
    """
    w = p_target / (1 - p_target).clamp_min(1e-6)
    return ((w * right).sum() / w.sum()).item()


def mixval(p: Tensor, partner: Tensor, mixed: Tensor) -> float:
    """How often a mixture of two images is answered as the one of more weight, 0..1; higher is better.

    p: probabilities [N, K] of N images, partner: int64 [N], mixed: probabilities [N, K] of 0.55 x_i + 0.45 x_partner.
    The mean over two kinds of pairs, of the same answer and of different ones; a kind of which there is none counts
    0, as one answer for all says nothing. Source: Hu et al., NeurIPS 2023, where each kind ranks the candidates and
    pairs of the same answer are drawn as such; here partners are drawn at random, so that with many classes they are
    few, and with a frozen backbone its features are mixed, not images.
    """
    answer = p.argmax(1)
    alike, right = answer == answer[partner], mixed.argmax(1) == answer
    return sum(right[kind].double().mean().item() / 2 for kind in (alike, ~alike) if kind.any())


def answer_scores(p: Tensor) -> dict[str, float]:
    """The scores of probabilities [N, K] alone; snd compares each image with each.

    entropy: mean over images, low where the answers are sure. diversity: entropy of the mean answer, log K where all
    classes are answered alike, 0 when a single one is. information: diversity - entropy, the mutual information of
    image and answer (Gomes et al., NIPS 2010). snd, bnm: see above.
    """
    sure, spread = (value.item() for value in entropy_and_diversity(p.double()))
    return {
        "entropy": sure,
        "diversity": spread,
        "information": spread - sure,
        "snd": soft_neighbourhood_density(p),
        "bnm": batch_nuclear_norm(p),
    }


def validation_scores(
    net: DANN, images: Tensor | Stored, target: Answers, source: Answers | None = None, limit: int = 2000
) -> dict[str, float | None]:
    """All of SCORES of a network's answers on N target images, or on features of them, and the proxy A-distance.

    No label of the target is read; iw reads those of `source`, the answers on the source's val, and is None without
    them. Of `limit` images of each domain at most, as snd compares each with each.
    """
    rows = torch.tensor(some_rows(len(images), limit))
    p, features = target.probabilities[rows], target.features[rows]
    partner = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    mixed = [
        predict(net, 0.55 * images[rows[i]] + 0.45 * images[rows[partner[i]]])[1]
        for i in torch.arange(len(rows)).split(256)  # as floats, which are four times as large
    ]
    distance = weighted = None
    if source is not None and min(len(source.features), len(images)) >= MINIMUM:
        p_target, rows_s = tell_apart(source.features, target.features, limit)
        distance = distance_of(p_target)
        if source.right is not None:
            weighted = importance_weighted_accuracy(source.right[rows_s], p_target[: len(rows_s)])
    return {
        **answer_scores(p),
        "class_ami": class_ami(p, features),
        "iw": weighted,
        "mixval": mixval(p, partner, torch.cat(mixed)),
        "proxy_a_distance": distance,
    }


def top_class_share(p: Tensor) -> float:
    """Share 0..1 of the images, of probabilities [N, K], that get the most frequent answer."""
    return p.argmax(1).bincount().max().item() / len(p)


def unsure(scores: dict[str, Any]) -> bool:
    """Whether the answers are unsure for what they tell apart: an entropy above a quarter of the diversity.

    Of the runs in lab/, those warned of are right on 0.25 to 0.86 of the images, the others on 0.23 to 1.00. The fewer
    the classes, the surer the answers must be: of two 0.96 on average, of ten 0.89, if the rest is spread evenly. Where
    nearly all of the target is one class, confident answers can count as unsure.
    """
    return scores["entropy"] > 0.25 * scores["diversity"]


def collapse(last: dict[str, Any], num_classes: int, count: int) -> list[str]:
    """What the last line of metrics.jsonl gives cause to doubt in the answers, a sentence each; no label is used.

    count: images answered, which cannot show more classes than that; a handful shows nothing. A target need not have
    all classes: answers that are sure and spread over a quarter of them or more are no collapse.
    """
    if last.get("diversity") is None or count < MINIMUM:
        return []
    share, answered, most = last.get("top_class_share") or 0.0, math.exp(last["diversity"]), min(num_classes, count)
    if answered < 1.05 or share > 0.99:
        return [
            "every target image, or nearly every, gets the same answer: unless the target is like that, the features "
            "have collapsed; try another --seed, a lower -lr or more steps."
        ]
    found = []
    if unsure(last):
        found.append(
            f"the answers on the target are unsure (entropy {last['entropy']:.2f}, above a quarter of the diversity, "
            f"{last['diversity'] / 4:.2f}): check some by hand."
        )
    if share > max(0.6, min(0.9, 2 / num_classes)) or answered < most / 4:
        found.append(
            f"few classes get the answers on the target, as many as {answered:.1f} of {num_classes}, the first "
            f"{share:.0%}: unless the target is like that, "
            "classes have merged; compare another --seed."
        )
    return found


def changed_answers(reference: Tensor, adapted: Tensor) -> dict[str, float]:
    """How far adaptation changed the answers of a network trained on the source alone; no label is used.

    reference, adapted: probabilities [N, K] of the same images. agreement: share of the images with the same answer;
    of the reference, confidence: mean of the highest probability, which estimates its accuracy; entropy and diversity
    as in validation_scores.
    """
    p = reference.double()
    sure, spread = entropy_and_diversity(p)
    return {
        "agreement": (p.argmax(1) == adapted.argmax(1)).double().mean().item(),
        "confidence": p.max(1).values.mean().item(),
        "entropy": sure.item(),
        "diversity": spread.item(),
    }


def harm(changed: dict[str, Any]) -> list[str]:
    """Whether adaptation must have made answers worse, if the source-only network is right as often as it is confident.

    changed: as changed_answers has it. Of the changed answers at most 1 - confidence can have been wrong before. Where
    more than twice as many have changed, the adapted network is right on less than the source-only one, whatever the
    images are: agreement + 1 - confidence < confidence. One whose answers are unsure is more confident than right
    (0.78 on SVHN, where it is right on a third), and says nothing.
    """
    if unsure(changed) or changed["agreement"] >= 2 * changed["confidence"] - 1:
        return []
    return [
        "adaptation may have done harm: a network trained on the source alone is sure of its answers on the target "
        f"(mean confidence {changed['confidence']:.2f}), and {1 - changed['agreement']:.0%} of them have changed: "
        "compare a run of --train_mode source, and check by hand some images on which the two differ."
    ]


def idle_adversary(
    lines: list[dict[str, Any]], distance_before: float | None = None, distance: float | None = None
) -> list[str]:
    """Whether lambda or the domain classifier did nothing, or nothing of use, to align the domains; by metrics.jsonl.

    A constant domain classifier has L_d = log 2 at best: far above, it is worse than none, and what it sends back is
    noise. At log 2 it may have been fooled, as was wanted; the proxy A-distances before and after stand beside that.
    """
    guess, found = math.log(2), []
    known = distance_before is not None and distance is not None
    distances = f" (proxy A-distance {distance_before:.2f} before, {distance:.2f} after)" if known else ""
    if max(line["lambda"] for line in lines) < 1e-3:
        found.append(
            "lambda was 0 in every line, or nearly: the domain loss aligned nothing; use more steps, or a larger "
            "--lambda_max."
        )
    if min(line["L_d"] for line in lines) > guess + 0.1 or lines[-1]["L_d"] > guess + 0.5:
        found.append(
            f"the domain classifier does worse than a guess (L_d {lines[-1]['L_d']:.2f}, a guess has 0.69): it does "
            "not follow the features, and the domain loss aligned nothing; try a lower -lr."
        )
    elif min(line["L_d"] for line in lines) > guess - 0.003:
        found.append(
            "the domain classifier never told the domains apart (L_d stayed at log 2 = 0.693): either they are alike"
            f"{distances}, or it does not learn; compare a run with a lower --lambda_max."
        )
    elif (
        len(lines) > 2
        and all(  # it answers as if it saw nothing
            abs(line["L_d"] - guess) < 0.001 and abs((line.get("domain_accuracy") or 0.5) - 0.5) < 0.005
            for line in lines[len(lines) // 2 :]
        )
    ):
        found.append(
            "the domain classifier no longer tells the domains apart (L_d is log 2 = 0.693 and its accuracy one half "
            f"since the middle of the run): either they are alike now{distances}, or it has stopped learning; compare "
            "a run with a lower --lambda_max."
        )
    return found
