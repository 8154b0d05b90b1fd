//! Mask R-CNN with a FasterNet backbone and a feature pyramid.
