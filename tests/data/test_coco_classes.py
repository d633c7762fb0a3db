"""COCO's numbering, against the list of the 91 categories that COCO's authors planned."""

from rml_jax.data.sources.coco_classes import CLASS_NAMES, COCO_IDS, UNUSED_IDS

# In COCO's order, one line per supercategory. Those in square brackets were never annotated.
PLANNED = """
person
bicycle, car, motorcycle, airplane, bus, train, truck, boat
traffic light, fire hydrant, [street sign], stop sign, parking meter, bench
bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe
[hat], backpack, umbrella, [shoe], [eye glasses], handbag, tie, suitcase
frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket
bottle, [plate], wine glass, cup, fork, knife, spoon, bowl
banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake
chair, couch, potted plant, bed, [mirror], dining table, [window], [desk], toilet, [door]
tv, laptop, mouse, remote, keyboard, cell phone
microwave, oven, toaster, sink, refrigerator, [blender]
book, clock, vase, scissors, teddy bear, hair drier, toothbrush, [hair brush]
"""
CATEGORIES = [name.strip() for name in PLANNED.strip().replace("\n", ",").split(",")]


def test_classes_are_the_annotated_categories_under_their_planned_numbers():
    assert len(CATEGORIES) == 91
    annotated = {number: name for number, name in enumerate(CATEGORIES, start=1) if not name.startswith("[")}
    assert dict(zip(COCO_IDS, CLASS_NAMES, strict=True)) == annotated
    assert len(CLASS_NAMES) == 80
    assert set(UNUSED_IDS) == set(range(1, 92)) - annotated.keys()


def test_ids_known_from_cocos_files():
    known = {1: "person", 13: "stop sign", 18: "dog", 44: "bottle", 67: "dining table", 90: "toothbrush"}
    ids = dict(zip(COCO_IDS, CLASS_NAMES, strict=True))
    assert {number: ids[number] for number in known} == known
    assert not any(unused in ids for unused in UNUSED_IDS)
