"""Classification of three species of iris by four lengths: a 4-6-3 network with 6 sigmoid hidden units and 3 softmax outputs.

    h = sigmoid(W x + b)                          W (6, 4), x in centimeters, as they were measured
    p = softmax(U h + c)                          U (3, 6)
    J = -1/N sum_n log p(class of flower n)       the cross-entropy, minimized by AdamW without weight decay

The data is that of Fisher (1936, "The use of multiple measurements in taxonomic problems"), with 50 flowers of each class. The
first 40 of each class are for training, and the last 10 for the test. The first two test flowers of each class are printed with
their predictions: for all random seeds from 0 to 19, the right class has a probability above 0.99. Two training flowers, one
versicolor and one virginica, look so much like the other class that the network misclassifies them.

    python examples/iris.py
"""

import numpy as np
from sklearn.datasets import load_iris

from fflm import FeedforwardClassifier

CLASSES = {1: "setosa", 2: "versicolor", 3: "virginica"}
FLOWERS = np.array(  # length and width of the sepals, length and width of the petals
    [
        [5.0, 3.5, 1.3, 0.3],
        [4.5, 2.3, 1.3, 0.3],
        [5.5, 2.6, 4.4, 1.2],
        [6.1, 3.0, 4.6, 1.4],
        [6.7, 3.1, 5.6, 2.4],
        [6.9, 3.1, 5.1, 2.3],
    ]
)


def split() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the features (120, 4) and classes (120,) for training, and those for the test, (30, 4) and (30,).

    The classes are 1, 2 and 3.
    """
    features, classes = load_iris(return_X_y=True)  # 50 of each class, one class after another
    first = np.arange(len(classes)) % 50 < 40
    return features[first], classes[first] + 1, features[~first], classes[~first] + 1


def train(features: np.ndarray, classes: np.ndarray, random_state: int = 0) -> FeedforwardClassifier:
    """Return a trained network. Weight decay is 0, because it would keep the probabilities away from 0 and 1."""
    model = FeedforwardClassifier(
        (6,), "sigmoid", normalize=False, epochs=1000, batch_size=16, rate=0.05, weight_decay=0, random_state=random_state
    )
    return model.fit(features, classes)


def confusion(classes: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return the confusion matrix (3, 3): how many flowers of each class (rows) were predicted as each class (columns)."""
    counts = np.zeros((3, 3), int)
    np.add.at(counts, (classes - 1, predicted - 1), 1)
    return counts


def main() -> None:
    train_features, train_classes, test_features, test_classes = split()
    model = train(train_features, train_classes)
    W, U = model.parameters_.hidden_weights[0], model.parameters_.output_weight
    print(f"4-6-3 network: W {W.shape}, U {U.shape}, {model.parameters_.count} parameters with the biases")
    losses = [evaluation.train_loss for evaluation in model.evaluations_]
    print("J after epoch  " + ", ".join(f"{epoch}: {losses[epoch - 1]:.4f}" for epoch in (1, 10, 100, 1000)))

    for name, features, classes in (("training", train_features, train_classes), ("test", test_features, test_classes)):
        right = (model.predict(features) == classes).sum()
        print(f"{name} accuracy = {right} / {len(classes)} = {right / len(classes):.3f}")

    print("\nconfusion matrix of the test: rows are the classes, columns what they were taken for")
    print(" " * 14 + "".join(f"{name:>12s}" for name in CLASSES.values()))
    for name, row in zip(CLASSES.values(), confusion(test_classes, model.predict(test_features)), strict=True):
        print(f"  {name:12s}" + "".join(f"{count:12d}" for count in row))

    print("\n" + " " * 24 + "p(class | flower)")
    print("  flower x (cm)       " + "".join(f"{f'p({number})':>9s}" for number in CLASSES) + "   class")
    probabilities = model.predict_proba(FLOWERS)
    for flower, p, predicted in zip(FLOWERS, probabilities, model.predict(FLOWERS), strict=True):
        lengths = ", ".join(f"{length:.1f}" for length in flower)
        print(f"  ({lengths})" + "".join(f"{each:9.4f}" for each in p) + f"   {predicted} {CLASSES[predicted]}")


if __name__ == "__main__":
    main()
