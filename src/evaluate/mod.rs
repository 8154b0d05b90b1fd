//! Inference over a data set, COCO metrics, painted pictures.
