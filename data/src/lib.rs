//! Generator of synthetic COCO data sets.
