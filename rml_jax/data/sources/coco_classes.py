"""COCO's 80 object classes: the numbers that this project uses and the ones in COCO's annotation files.

COCO's authors planned 91 object categories and annotated 80 of them, under the planned numbers: `category_id`
runs from 1 to 90 with ten gaps (and 91, never used). Masks here hold contiguous numbers, 0 for background and 1..80
for the classes in COCO's order. The two agree up to 11, "fire hydrant", and nowhere after: 12 is "stop sign" here and
13 there, so a mask in the wrong numbering does not fail, it scores wrong classes.
"""

_NAMES = """
person
bicycle, car, motorcycle, airplane, bus, train, truck, boat
traffic light, fire hydrant, stop sign, parking meter, bench
bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe
backpack, umbrella, handbag, tie, suitcase
frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket
bottle, wine glass, cup, fork, knife, spoon, bowl
banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake
chair, couch, potted plant, bed, dining table, toilet
tv, laptop, mouse, remote, keyboard, cell phone
microwave, oven, toaster, sink, refrigerator
book, clock, vase, scissors, teddy bear, hair drier, toothbrush
"""

CLASS_NAMES = tuple(_NAMES.strip().replace("\n", ", ").split(", "))
"""The 80 classes in COCO's order; class number i of a mask is CLASS_NAMES[i - 1]."""

UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
"""The planned categories that COCO never annotated."""

COCO_IDS = tuple(number for number in range(1, 92) if number not in UNUSED_IDS)
"""COCO's `category_id` of each class: class number i has COCO_IDS[i - 1]."""
