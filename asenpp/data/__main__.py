"""`python -m asenpp.data …`: make one of the data sets that anyone can have, or index files for one's own."""

from __future__ import annotations

import argparse
import sys

from .index import DataError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m asenpp.data",
        description="Make a data set: image files, and the index files that training reads.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="DATA SET")

    mnist = commands.add_parser(
        "fashion_mnist", help="Zalando's 70,000 images of garments, from their four IDX files",
        description="Turn Fashion-MNIST into image files and index files. Attributes: category (10) "
                    "and where the garment is worn (5). Numbers of images are balanced over the classes.")
    mnist.add_argument("--source", metavar="FOLDER",
                       help="folder with the four *-ubyte.gz files (default: those of the Debian and "
                            "Ubuntu package dataset-fashion-mnist)")
    mnist.add_argument("--out", default="data/FashionMNIST", metavar="FOLDER", help="default: %(default)s")
    mnist.add_argument("--train", type=int, metavar="N",
                       help="training images (default: the 60,000 of the training part without --valid)")
    mnist.add_argument("--valid", type=int, default=5000, metavar="N",
                       help="validation images, taken from the training part (default: %(default)s)")
    mnist.add_argument("--test", type=int, default=10000, metavar="N",
                       help="test images (default: %(default)s, all)")

    drawn = commands.add_parser(
        "garments", help="drawn garments, made offline, with the true box of each attribute",
        description="Draw garments whose six attributes are independent and sit in known places. "
                    "The same seed draws the same images. boxes.json holds, for each image and "
                    "attribute, the boxes [x, y, width, height] in pixels where it is seen.")
    drawn.add_argument("--out", default="data/Garments", metavar="FOLDER", help="default: %(default)s")
    drawn.add_argument("--images", type=int, default=600, metavar="N",
                       help="images in all: 70 %% train, 15 %% valid, 15 %% test (default: %(default)s)")
    drawn.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    drawn.add_argument("--size", type=int, default=128, metavar="PIXELS",
                       help="width and height of the images (default: %(default)s)")
    drawn.add_argument("--format", choices=("jpg", "png"), default="jpg",
                       help="jpg (quality 90) or png (lossless) (default: %(default)s)")

    styles = commands.add_parser(
        "style_labels", help="index files for a folder of class folders",
        description="Write index files for images that lie in a folder for each class: 80 % train; of the "
                    "rest 70 % candidates, the others queries. classid.txt names the classes.")
    styles.add_argument("images", metavar="FOLDER", help="the folder of class folders")
    styles.add_argument("--out", metavar="FOLDER",
                        help="where the index files go (default: the folder that the images' folder lies in)")
    styles.add_argument("--relative-to", metavar="FOLDER",
                        help="write paths from this folder on, DATA.IMAGE_ROOT being it (default: the paths as "
                             "FOLDER is given, DATA.IMAGE_ROOT being .)")
    styles.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    for command in (mnist, drawn, styles):
        command.add_argument("--force", action="store_true",
                             help="make the data set anew where --out holds one already")
        command.add_argument("--quiet", action="store_true", help="no progress bar, no closing line")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0, or 1 after one line that says what is wrong."""
    options = vars(_parser().parse_args(arguments))
    command = options.pop("command")
    try:
        if command == "fashion_mnist":
            from .fashion_mnist import prepare
        elif command == "style_labels":
            from .style_labels import prepare
        else:
            from .garments import prepare
        prepare(**options)
    except (DataError, OSError) as error:
        print(f"asenpp.data: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        left = "" if command == "style_labels" else ", nothing was written"
        print(f"asenpp.data: interrupted{left}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
