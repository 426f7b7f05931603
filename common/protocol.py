"""Versions of the protocol between coordinator and workers, and what each brought."""

PROTOCOL_MIN = 1
# 2: an interrupted upload goes on where it broke off (OfferUpdate). 3: many labels come as a file.
# 4: tasks of numbers, of several classes, and of a class for every word.
# 5: scores at the workers; workers asked for their classes before they join, and how these weigh; SGD; FFN
# neurons tuned in full; conversations. 6: updates that are summed masked, or weighed by
# target tokens; int8; differential privacy.
# 7: workers that ask which run there is for them, and may decline it.
PROTOCOL_MAX = 7
LABELS_FILE_SINCE = 3
VALIDATION_SINCE = 5
CLASSES_SINCE = 5
SGD_SINCE = 5
NEURONS_SINCE = 5
CONVERSATIONS_SINCE = 5
SECURE_SINCE = 6
TARGETS_SINCE = 6
INT8_SINCE = 6
DP_SINCE = 6
FIND_SINCE = 7
