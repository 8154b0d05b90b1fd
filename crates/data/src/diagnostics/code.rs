//! The codes of diagnostics and their descriptions.

use std::fmt;

use serde::Serialize;

/// How serious a diagnostic is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Informational.
    Note,
    /// Looks wrong or was repaired. Training continues.
    Warning,
    /// Training and testing stop with exit code 3.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// The description of a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CodeDescription {
    /// How serious it is.
    pub severity: Severity,
    /// The finding, as a phrase.
    pub what: &'static str,
    /// What fnet does with it.
    pub action: &'static str,
    /// What MMDetection does with it.
    pub reference: &'static str,
    /// What the owner of the data should do.
    pub remedy: &'static str,
}

/// Defines [`Code`] with one row per code.
macro_rules! codes {
    ($($(#[$attribute:meta])* $code:ident = $name:literal, $severity:ident, $what:literal, $action:literal, $reference:literal, $remedy:literal;)+) => {
        /// A kind of diagnostic. `check-data` prints its name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = $what] $code,)+
        }

        impl Code {
            /// Every code, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$code),+];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$code => $name,)+
                }
            }

            /// Its description.
            pub fn description(self) -> CodeDescription {
                match self {
                    $(Self::$code => CodeDescription {
                        severity: Severity::$severity,
                        what: $what,
                        action: $action,
                        reference: $reference,
                        remedy: $remedy,
                    },)+
                }
            }
        }
    };
}

codes! {
    // Annotation files and folders.
    FileUnreadable = "file-unreadable", Error,
        "an annotation file cannot be read", "stops", "crashes",
        "correct ann_file in the config (FNET_DATA_ROOT overrides data.root), or fix the file";
    FileFolderMissing = "file-folder-missing", Error,
        "the image folder does not exist", "stops", "crashes at the first image",
        "put the images there, or correct img_prefix in the config (FNET_DATA_ROOT overrides data.root)";
    FileEmpty = "file-empty", Error,
        "an empty annotation file", "stops", "crashes",
        "export, copy or download it again";
    FileEncoding = "file-encoding", Warning,
        "an annotation file in UTF-16 or UTF-32, or with a byte-order mark", "decoded", "crashes",
        "save it as UTF-8 without a byte-order mark";
    FileNotUtf8 = "file-not-utf8", Warning,
        "text that is not UTF-8 in unused places (dates, descriptions, other keys)", "ignored", "crashes",
        "save the file as UTF-8";
    FileNotJson = "file-not-json", Error,
        "an annotation file that is not valid JSON", "stops", "crashes",
        "fix the file or export it again";
    FileCutOff = "file-cut-off", Error,
        "an annotation file that ends too early", "stops", "crashes",
        "export, copy or download it again";
    FileOtherFormat = "file-other-format", Error,
        "a file in another format than COCO instances", "stops", "crashes",
        "expected an object with the lists images, annotations and categories";
    FileKeyMissing = "file-key-missing", Error,
        "an annotation file without a list `images`, `categories` or (for training) `annotations`", "stops", "crashes",
        "export the file as COCO instances, with this list";
    FileKeyRepeated = "file-key-repeated", Warning,
        "a list that appears twice in an annotation file", "the last one is used", "the same",
        "remove one of them";
    FileNothing = "file-nothing", Error,
        "a training set without any object to train on", "stops", "trains only on background",
        "check data.classes and the annotations";
    // Classes.
    ClassCount = "class-count", Error,
        "model.num_classes is not the number of classes of a set", "stops", "stops when training begins",
        "set model.num_classes to the number of classes, or list the classes to use in data.classes";
    ClassUnknown = "class-unknown", Error,
        "a name in data.classes that no category has", "stops", "continues with fewer classes than the model has",
        "correct data.classes or the categories of the file; a checkpoint contains the classes that it was trained for";
    ClassOrder = "class-order", Warning,
        "data.classes in another order than the annotation file", "labels follow the order of the file", "the same",
        "use the order of the file in data.classes";
    CategoryMalformed = "category-malformed", Error,
        "an entry of `categories` that is not an object or has no id or name", "stops", "crashes",
        "give it an id and a name, or remove it";
    CategoryNone = "category-none", Error,
        "an empty list of categories", "stops", "crashes, or trains only on background",
        "export the file with its categories";
    CategoryMany = "category-many", Error,
        "more than 65534 categories", "stops", "continues",
        "list the classes to use in data.classes";
    CategoryRepeated = "category-repeated", Warning,
        "a category that appears more than once in the list", "counted once", "crashes: each one counts as a separate class",
        "remove all but one";
    CategoryConflict = "category-conflict", Error,
        "one category id with two names", "stops", "the last one is used",
        "give each category its own id";
    CategoryNameRepeated = "category-name-repeated", Warning,
        "two category ids with one name", "two classes of that name", "the same",
        "if the first has no objects, as in Roboflow exports, remove it; otherwise give them different names";
    CategoryIdText = "category-id-text", Warning,
        "a category id that is a string", "converted to a number, or used as a name if it is not one", "crashes, or loses the annotations",
        "write ids as numbers";
    CategoryUnused = "category-unused", Note,
        "a class without an annotation", "used like any other class", "the same",
        "to leave it out of the model, list the other classes in data.classes";
    // Entries of `images`.
    ImageMalformed = "image-malformed", Error,
        "an entry of `images` that is not an object, has no id or file_name, or has values of the wrong type", "stops", "crashes",
        "fix or remove the entry";
    ImageIdText = "image-id-text", Warning,
        "an image id that is a string", "converted to a number, or used as a name if it is not one", "crashes, or loses the annotations",
        "write ids as numbers";
    ImageIdRepeated = "image-id-repeated", Warning,
        "an image id that appears more than once", "the last entry is used, in place of the first", "the same",
        "give each image its own id";
    ImageNameRepeated = "image-name-repeated", Warning,
        "two images with the same file", "used as two images", "the same",
        "remove one, or correct file_name";
    ImageSizeMissing = "image-size-missing", Warning,
        "an image without a width and height above 0", "read from the image", "crashes",
        "add width and height in pixels";
    ImageSizeUnknown = "image-size-unknown", Error,
        "an image without width and height whose file cannot be read", "stops", "crashes",
        "add width and height in pixels, or the image file";
    ImageSizeText = "image-size-text", Warning,
        "a width or height that is a string", "converted to a number", "crashes",
        "write it as a number";
    ImageSmall = "image-small", Note,
        "an image less than 32 pixels wide or high", "not trained on (filter_empty)", "the same",
        "no action needed";
    ImageEmpty = "image-empty", Note,
        "an image without an annotation of a selected class", "not trained on (filter_empty)", "the same",
        "no action needed; filter_empty = false includes it in training";
    // Image files.
    ImageMissing = "image-missing", Error,
        "the file of an image does not exist", "stops", "crashes when the image is loaded",
        "add the file, correct img_prefix in the config or file_name, or remove the image from the annotation file";
    ImageNameMeant = "image-name-meant", Warning,
        "no image has the name in the annotation file, but one name differs only by backslashes, percent codes, case or Unicode form",
        "that image is used", "crashes when the image is loaded",
        "correct file_name";
    ImageNameUnclear = "image-name-unclear", Error,
        "no image has the name in the annotation file, and several names differ only by case or Unicode form",
        "stops", "crashes when the image is loaded",
        "correct file_name";
    ImageUnreadable = "image-unreadable", Error,
        "an image cannot be read or decoded", "stops", "crashes when the image is loaded",
        "or remove the image from the annotation file";
    ImageLeftOut = "image-left-out", Warning,
        "an image does not exist or cannot be decoded, and data.on_error is \"skip\"",
        "training uses another image instead; evaluation treats it as an image without detections", "crashes when the image is loaded",
        "add or replace the file, or remove the image from the annotation file";
    ImageDamaged = "image-damaged", Warning,
        "an image is damaged, but can be decoded partially", "decoded like OpenCV does; missing parts are gray", "the same",
        "replace the file";
    ImageSizeDiffers = "image-size-differs", Warning,
        "width and height in the annotation file differ from those of the image after its EXIF rotation",
        "boxes are used as they are; masks are drawn at the listed size, then resized like the image; in evaluation no mask of the image can match", "the same",
        "correct width and height in the annotation file, or replace the image";
    ImageSizeUnusable = "image-size-unusable", Error,
        "the listed width and height differ so much from the image that its resized masks do not fit into it; with data.pipeline.train, that they differ at all",
        "stops", "crashes when the image is loaded",
        "correct width and height in the annotation file; if the annotations were made without the EXIF rotation, remove it from the image";
    ImageRotated = "image-rotated", Note,
        "an image is stored rotated (EXIF orientation), and its annotations fit the upright image",
        "rotated upright", "the same",
        "no action needed";
    ImageExtension = "image-extension", Note,
        "an image's format does not match its file extension", "decoded according to its content", "the same",
        "rename the file if other programs cannot read it";
    // Entries of `annotations`.
    AnnotationMalformed = "annotation-malformed", Error,
        "an entry of `annotations` that is not an object or has values of the wrong type, including a string for iscrowd", "stops", "crashes; treats any string as a crowd",
        "fix or remove the annotation";
    AnnotationIdMissing = "annotation-id-missing", Warning,
        "an annotation without an id", "its position in the list is used", "crashes",
        "give it an id";
    AnnotationIdText = "annotation-id-text", Warning,
        "an id, image_id or category_id of an annotation that is a string", "converted to a number, or used as a name if it is not one", "crashes, or loses the annotation",
        "write ids as numbers";
    AnnotationIdZero = "annotation-id-zero", Note,
        "an annotation with the id 0", "used like any other, in training and evaluation", "trained on; its evaluator counts the object as not found",
        "number the annotations from 1 if other tools evaluate with this file";
    AnnotationIdRepeated = "annotation-id-repeated", Warning,
        "an annotation id that appears more than once", "the last annotation of that id is used in place of each", "the same",
        "give each annotation its own id";
    AnnotationImageMissing = "annotation-image-missing", Error,
        "an annotation without image_id", "stops", "crashes",
        "add image_id, or remove the annotation";
    AnnotationImageUnknown = "annotation-image-unknown", Warning,
        "an annotation of an image that is not in the list", "left out", "the same",
        "add the image, or remove the annotation";
    AnnotationCategoryMissing = "annotation-category-missing", Error,
        "an annotation without category_id in a file with several categories", "stops", "crashes",
        "add category_id, or remove the annotation";
    AnnotationCategoryImplied = "annotation-category-implied", Warning,
        "an annotation without category_id in a file with one category", "assigned to that category", "crashes",
        "add category_id";
    AnnotationCategoryUnknown = "annotation-category-unknown", Warning,
        "an annotation of a category that is not in the list", "left out", "the same",
        "add the category, or correct category_id";
    AnnotationOtherClass = "annotation-other-class", Note,
        "an annotation in the training set of a category that is not in data.classes", "left out", "the same",
        "add the category to data.classes to use it";
    AnnotationOtherClassEvaluated = "annotation-other-class-evaluated", Warning,
        "an annotation in the validation set of a category that is not in data.classes", "left out of the metrics", "the same",
        "to use the category, add it to data.classes and train the model for it";
    AnnotationDouble = "annotation-double", Warning,
        "a duplicate object: two annotations of one image with the same class, box and mask", "both are used", "the same",
        "remove one of them; a detection can match only one";
    AnnotationCrowd = "annotation-crowd", Note,
        "annotations with \"iscrowd\": 1", "not trained on; evaluation ignores detections that match them", "the same",
        "set iscrowd to 0 if the annotation is a single object; some tools write 1 for every RLE mask";
    AnnotationCrowdAll = "annotation-crowd-all", Error,
        "a training set whose annotations all have \"iscrowd\": 1", "stops", "trains only on background",
        "set iscrowd to 0 if the annotation is a single object; some tools write 1 for every RLE mask";
    AnnotationCrowdAllEvaluated = "annotation-crowd-all-evaluated", Warning,
        "a validation set whose annotations all have \"iscrowd\": 1", "there is nothing to find, so metrics are -1", "the same",
        "set iscrowd to 0 if the annotation is a single object; some tools write 1 for every RLE mask";
    AnnotationCrowdMissing = "annotation-crowd-missing", Warning,
        "an annotation without iscrowd", "treated as not a crowd", "trains; its evaluator crashes",
        "add \"iscrowd\": 0";
    AnnotationAreaMissing = "annotation-area-missing", Warning,
        "an annotation without area", "the area of the mask or the box is used", "crashes",
        "add the area of the mask in pixels";
    AnnotationAreaText = "annotation-area-text", Warning,
        "an area that is a string", "converted to a number", "crashes",
        "write it as a number";
    AnnotationAreaZero = "annotation-area-zero", Warning,
        "an annotation with an area of 0 or less and a box that is not empty", "not trained on", "the same",
        "correct the area, or remove the annotation";
    // Boxes.
    BoxMissing = "box-missing", Error,
        "an annotation with neither box nor mask", "stops", "crashes",
        "add bbox = [x, y, width, height] and a mask, or remove the annotation";
    BoxFromMask = "box-from-mask", Warning,
        "an annotation with a mask but no box", "the bounding box of the mask is used", "crashes",
        "add bbox = [x, y, width, height]";
    BoxText = "box-text", Warning,
        "a box whose numbers are strings", "read as numbers", "crashes",
        "write the box as numbers";
    BoxNotFinite = "box-not-finite", Warning,
        "a box with NaN or Infinity in the training set", "not trained on unless only its far side is infinite", "the same",
        "correct the box";
    BoxNotFiniteEvaluated = "box-not-finite-evaluated", Error,
        "a box with NaN or Infinity in the validation set", "stops", "continues; its evaluator counts any detection as a match",
        "correct the box, or remove the annotation";
    BoxNormalized = "box-normalized", Warning,
        "a box that looks like fractions of the image size instead of pixels", "not trained on, because it is smaller than one pixel", "the same",
        "multiply x and width by the image's width, y and height by its height";
    BoxEmpty = "box-empty", Warning,
        "a box less than one pixel wide or high, or of negative size", "not trained on", "the same",
        "correct the box, or remove the annotation";
    BoxElsewhere = "box-elsewhere", Warning,
        "a box outside of its image", "not trained on", "the same",
        "correct the box, or remove the annotation";
    BoxOutside = "box-outside", Warning,
        "a box that extends more than one pixel beyond its image", "used as it is and clipped after resizing", "the same",
        "check the export: expected pixels from the top left corner";
    // Masks.
    MaskMissing = "mask-missing", Error,
        "an object in the training set without a mask: none, an empty list, or a first polygon of fewer than three points (4 numbers are not a box)",
        "stops", "crashes",
        "add a polygon [[x, y, x, y, x, y, ...]] or RLE, remove the annotation, or train without it: model.mask = false for a model of boxes only, data.without_mask = \"box\" or \"skip\" for such objects alone";
    MaskMissingBox = "mask-missing-box", Warning,
        "an object in the training set without a mask (see mask-missing), when data.without_mask is \"box\"",
        "the box head is trained on it, the mask head is not", "crashes",
        "add a polygon or RLE to train on its mask";
    MaskMissingSkipped = "mask-missing-skipped", Warning,
        "an object in the training set without a mask (see mask-missing), when data.without_mask is \"skip\"",
        "not trained on", "crashes",
        "add a polygon or RLE, or set data.without_mask to \"box\" to train on its box";
    MaskMissingEvaluated = "mask-missing-evaluated", Warning,
        "an object in the validation set without a mask (see mask-missing), when only boxes are evaluated", "used like any other", "the same",
        "add masks to evaluate masks";
    MaskNeeded = "mask-needed", Error,
        "an object in the validation set without a mask, when masks are evaluated", "stops", "crashes at the first evaluation",
        "add masks, or evaluate only boxes: --eval bbox (test), evaluation.metrics = [\"bbox\"] (training); model.mask = false for a model of boxes only; data.without_mask = \"box\" or \"skip\" to ignore such objects";
    MaskMissingIgnored = "mask-missing-ignored", Warning,
        "an object in the validation set without a mask, when masks are evaluated and data.without_mask is \"box\" or \"skip\"",
        "in the metrics of masks, its box is a region like a crowd: detections in it do not count", "crashes at the first evaluation",
        "add masks to count these objects";
    MaskMalformed = "mask-malformed", Error,
        "a segmentation that is neither polygons nor RLE, or has invalid numbers", "stops", "crashes",
        "fix or remove the annotation";
    MaskText = "mask-text", Warning,
        "a polygon or RLE with numbers that are strings", "read as numbers", "crashes",
        "write them as numbers";
    MaskFlat = "mask-flat", Warning,
        "a polygon without its enclosing list", "used as a mask of one polygon", "crashes",
        "write [[x, y, ...]]";
    MaskOdd = "mask-odd", Warning,
        "a polygon with an odd number of values", "the last value is ignored", "the same",
        "correct the polygon";
    MaskFewPoints = "mask-few-points", Warning,
        "a polygon of fewer than three points among others", "dropped", "crashes if it is the first, otherwise dropped",
        "correct or remove the polygon";
    MaskShort = "mask-short", Warning,
        "an RLE that ends before the last pixel", "the rest is background", "the same",
        "export the mask again";
    MaskEmpty = "mask-empty", Warning,
        "a mask without pixels and a box with pixels: polygons without area or outside of the image, or an RLE of only background",
        "not trained on; in evaluation no mask can match it", "trains on the empty mask; evaluates the same",
        "correct the mask, or remove the annotation";
    MaskOutside = "mask-outside", Warning,
        "a polygon that extends more than one pixel beyond its image", "clipped at the border", "the same",
        "check the export: expected pixels from the top left corner";
    MaskBoxDiffers = "mask-box-differs", Warning,
        "a box and a mask that differ by more than 2 pixels and 5% of the box", "both are used as they are", "the same",
        "check which of the two is correct";
    // Both sets.
    SplitCategories = "split-categories", Error,
        "two sets have different classes, or a different order of classes",
        "stops", "continues; labels mean different classes in the two sets",
        "export both sets with the same list of categories, or list the common ones in data.classes";
    SplitCategoryIds = "split-category-ids", Warning,
        "a class has different ids in the training and validation sets",
        "labels follow the order of the classes; results use the ids of the validation set", "the same",
        "export both sets with the same list of categories";
    SplitSharedImages = "split-shared-images", Warning,
        "an image of the validation or test set is also in the training set", "used in both", "the same",
        "remove it from one of the sets, otherwise the metrics are too high";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
