"""Scores a run's last checkpoint: python eval.py --workdir=DIR [--split=NAME] [--config.key=value]

Or weights from elsewhere, or a folder of masks made by anyone; what comes out goes to DIR/eval:

    python eval.py --weights=PATH --config=FILE[:VARIANT] --workdir=DIR
    python eval.py --masks=FOLDER --config=FILE[:VARIANT] --workdir=DIR
"""

from rml_jax.commands.eval import main

if __name__ == "__main__":
    main()
