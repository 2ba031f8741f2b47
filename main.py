"""The command line: train or test as configuration files say. All work is done by asenpp.engine.

    python main.py --cfg config/Garments/Garments.yaml config/Garments/s1.yaml
    python main.py --cfg config/Garments/Garments.yaml config/Garments/s2.yaml \\
        --resume runs/Garments_s2/model_best.pth.tar --test TEST
"""

import sys

from asenpp.engine.command import main

if __name__ == "__main__":
    sys.exit(main())
