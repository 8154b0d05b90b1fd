//! The codes of diagnostics, each with its facts in one place.

use std::fmt;

use serde::Serialize;

/// What a diagnostic means for the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; nothing is done about it.
    Note,
    /// Looks wrong or was repaired; training goes on.
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

/// What is to be known about a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CodeDescription {
    /// What it means for the job.
    pub severity: Severity,
    /// What is found, as a phrase.
    pub what: &'static str,
    /// What fnet does with it.
    pub action: &'static str,
    /// What the reference does with it.
    pub reference: &'static str,
    /// What the owner of the data should do.
    pub remedy: &'static str,
}

/// Defines [`Code`] with the facts of each in one row.
macro_rules! codes {
    ($($(#[$attribute:meta])* $code:ident = $name:literal, $severity:ident, $what:literal, $action:literal, $reference:literal, $remedy:literal;)+) => {
        /// A kind of diagnostic; its name is what `check-data` prints.
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

            /// What is to be known about it.
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
        "correct ann_file in the config (FNET_DATA_ROOT replaces data.root), or the file";
    FileFolderMissing = "file-folder-missing", Error,
        "the folder of the images does not exist", "stops", "crashes at the first image",
        "put the images there, or correct img_prefix in the config (FNET_DATA_ROOT replaces data.root)";
    FileEmpty = "file-empty", Error,
        "an annotation file without content", "stops", "crashes",
        "export, copy or download it again";
    FileEncoding = "file-encoding", Warning,
        "an annotation file in UTF-16 or UTF-32, or with a byte-order mark", "read as what it is", "crashes",
        "save it as UTF-8 without a byte-order mark";
    FileNotUtf8 = "file-not-utf8", Warning,
        "text that is not UTF-8 where it is not used (dates, descriptions, other keys)", "passed over", "crashes",
        "save the file as UTF-8";
    FileNotJson = "file-not-json", Error,
        "an annotation file that is no JSON at a place", "stops", "crashes",
        "mend the file or export it again";
    FileCutOff = "file-cut-off", Error,
        "an annotation file that ends too early", "stops", "crashes",
        "export, copy or download it again";
    FileOtherFormat = "file-other-format", Error,
        "a file of another format than COCO instances", "stops", "crashes",
        "expected is one object with the lists images, annotations and categories";
    FileKeyMissing = "file-key-missing", Error,
        "an annotation file without a list `images`, `categories` or (for training) `annotations`", "stops", "crashes",
        "export the file as COCO instances, with this list";
    FileKeyRepeated = "file-key-repeated", Warning,
        "a list that stands twice in an annotation file", "the last one counts", "the same",
        "remove one of them";
    FileNothing = "file-nothing", Error,
        "a training set without a single object that can be trained on", "stops", "trains on nothing but background",
        "check data.classes and the annotations";
    // Classes.
    ClassCount = "class-count", Error,
        "model.num_classes is not the number of classes of a set", "stops", "stops when training begins",
        "set model.num_classes to the number of classes, or name the wanted ones in data.classes";
    ClassUnknown = "class-unknown", Error,
        "a name in data.classes that no category has", "stops", "goes on with fewer classes than the model has",
        "correct data.classes or the categories of the file; what a checkpoint holds are the classes that it was trained for";
    ClassOrder = "class-order", Warning,
        "data.classes in another order than the annotation file", "labels follow the order of the file", "the same",
        "put data.classes into the order of the file";
    CategoryMalformed = "category-malformed", Error,
        "an entry of `categories` without id or name, or that is no object", "stops", "crashes",
        "give it an id and a name, or remove it";
    CategoryNone = "category-none", Error,
        "an empty list of categories", "stops", "crashes, or trains on nothing but background",
        "export the file with its categories";
    CategoryMany = "category-many", Error,
        "more than 65534 categories", "stops", "goes on",
        "name the wanted ones in data.classes";
    CategoryRepeated = "category-repeated", Warning,
        "a category that stands more than once in the list", "counted once", "crashes: it counts each as a class of its own",
        "remove all but one";
    CategoryConflict = "category-conflict", Error,
        "one category id with two names", "stops", "the last one counts",
        "give each category its own id";
    CategoryNameRepeated = "category-name-repeated", Warning,
        "two category ids with one name", "two classes of that name", "the same",
        "if the first has no objects, as in exports of Roboflow, remove it; else give them different names";
    CategoryIdText = "category-id-text", Warning,
        "a category id that is a string", "read as the number in it; a name stands for itself", "crashes, or loses the annotations",
        "write ids as numbers";
    CategoryUnused = "category-unused", Note,
        "a class without an annotation", "a class like any other", "the same",
        "it stays a class of the model unless data.classes names the others";
    // Entries of `images`.
    ImageMalformed = "image-malformed", Error,
        "an entry of `images` that is no object, without id or file_name, or with values of the wrong kind", "stops", "crashes",
        "mend or remove the entry";
    ImageIdText = "image-id-text", Warning,
        "an image id that is a string", "read as the number in it; a name stands for itself", "crashes, or loses the annotations",
        "write ids as numbers";
    ImageIdRepeated = "image-id-repeated", Warning,
        "an image id that stands more than once", "the last entry counts, in the place of the first", "the same",
        "give each image its own id";
    ImageNameRepeated = "image-name-repeated", Warning,
        "two images with one file", "used as two images", "the same",
        "remove one, or correct file_name";
    ImageSizeMissing = "image-size-missing", Warning,
        "an image without width and height above 0", "taken from the image", "crashes",
        "add width and height in pixels";
    ImageSizeUnknown = "image-size-unknown", Error,
        "an image without width and height, whose image cannot be read", "stops", "crashes",
        "add width and height in pixels, and the image";
    ImageSizeText = "image-size-text", Warning,
        "a width or height that is a string", "read as the number in it", "crashes",
        "write it as a number";
    ImageSmall = "image-small", Note,
        "an image under 32 pixels wide or high", "not trained on (filter_empty)", "the same",
        "nothing needs to be done";
    ImageEmpty = "image-empty", Note,
        "an image without an annotation of a wanted class", "not trained on (filter_empty)", "the same",
        "nothing needs to be done; filter_empty = false trains on it";
    // Image files.
    ImageMissing = "image-missing", Error,
        "the file of an image does not exist", "stops", "crashes when the image is loaded",
        "add the file, correct img_prefix in the config or file_name, or remove the image from the annotation file";
    ImageNameMeant = "image-name-meant", Warning,
        "no image has the name in the annotation file, but one whose name differs by backslashes, percent codes, case or Unicode form",
        "that one is taken", "crashes when the image is loaded",
        "correct file_name";
    ImageNameUnclear = "image-name-unclear", Error,
        "no image has the name in the annotation file, and several have one that differs by case or Unicode form alone",
        "stops", "crashes when the image is loaded",
        "correct file_name";
    ImageUnreadable = "image-unreadable", Error,
        "an image cannot be read or decoded", "stops", "crashes when the image is loaded",
        "or remove the image from the annotation file";
    ImageLeftOut = "image-left-out", Warning,
        "an image does not exist or cannot be decoded, and data.on_error is \"skip\"",
        "training takes another one in its place; evaluation counts it as an image without detections", "crashes when the image is loaded",
        "add or replace the file, or remove the image from the annotation file";
    ImageDamaged = "image-damaged", Warning,
        "an image is damaged, but can be decoded in part", "used as OpenCV decodes it; what is cut off is gray", "the same",
        "replace the file";
    ImageSizeDiffers = "image-size-differs", Warning,
        "width and height of the annotation file are not those of the image after its EXIF rotation",
        "boxes are used as they are; masks are drawn at the listed size, then resized as the image is; in evaluation no mask of the image can match", "the same",
        "correct width and height in the annotation file, or replace the image";
    ImageSizeUnusable = "image-size-unusable", Error,
        "the listed width and height are so unlike the image that its resized masks do not fit into it",
        "stops", "crashes when the image is loaded",
        "correct width and height in the annotation file; if the annotations were made without the EXIF rotation, remove it from the image";
    ImageRotated = "image-rotated", Note,
        "an image is stored rotated (EXIF orientation), and its annotations fit the upright image",
        "turned upright", "the same",
        "nothing needs to be done";
    ImageExtension = "image-extension", Note,
        "an image's format is not the one that its name says", "decoded by its content", "the same",
        "rename the file if other programs stumble over it";
    // Entries of `annotations`.
    AnnotationMalformed = "annotation-malformed", Error,
        "an entry of `annotations` that is no object, or with values of the wrong kind, a string for iscrowd among them", "stops", "crashes; takes any string for a crowd",
        "mend or remove the annotation";
    AnnotationIdMissing = "annotation-id-missing", Warning,
        "an annotation without an id", "its place in the list stands for it", "crashes",
        "give it an id";
    AnnotationIdText = "annotation-id-text", Warning,
        "an id, image_id or category_id of an annotation that is a string", "read as the number in it; a name stands for itself", "crashes, or loses the annotation",
        "write ids as numbers";
    AnnotationIdZero = "annotation-id-zero", Note,
        "an annotation with the id 0", "used like any other, in training and evaluation", "trained on; its evaluator takes the object for one that was never found",
        "number the annotations from 1 if other tools evaluate with this file";
    AnnotationIdRepeated = "annotation-id-repeated", Warning,
        "an annotation id that stands more than once", "the last annotation of that id is used in place of each", "the same",
        "give each annotation its own id";
    AnnotationImageMissing = "annotation-image-missing", Error,
        "an annotation without image_id", "stops", "crashes",
        "add image_id, or remove the annotation";
    AnnotationImageUnknown = "annotation-image-unknown", Warning,
        "an annotation of an image that is not in the list", "left out", "the same",
        "add the image, or remove the annotation";
    AnnotationCategoryMissing = "annotation-category-missing", Error,
        "an annotation without category_id, where there are several categories", "stops", "crashes",
        "add category_id, or remove the annotation";
    AnnotationCategoryImplied = "annotation-category-implied", Warning,
        "an annotation without category_id, where there is one category", "taken to be of that category", "crashes",
        "add category_id";
    AnnotationCategoryUnknown = "annotation-category-unknown", Warning,
        "an annotation of a category that is not in the list", "left out", "the same",
        "add the category, or correct category_id";
    AnnotationOtherClass = "annotation-other-class", Note,
        "an annotation of the training set of a category that data.classes does not name", "left out", "the same",
        "name the category in data.classes if it is wanted";
    AnnotationOtherClassEvaluated = "annotation-other-class-evaluated", Warning,
        "an annotation of the validation set of a category that data.classes does not name", "left out of the metrics", "the same",
        "name the category in data.classes, and train for it, if it is wanted";
    AnnotationDouble = "annotation-double", Warning,
        "an object that stands twice: two annotations of one image with the same class, box and mask", "each is used", "the same",
        "remove one of them: one detection can only match one of them";
    AnnotationCrowd = "annotation-crowd", Note,
        "annotations with \"iscrowd\": 1", "not trained on; in evaluation, detections in them count neither way", "the same",
        "set iscrowd to 0 where an annotation is one object, as some tools write 1 for every mask of run lengths";
    AnnotationCrowdAll = "annotation-crowd-all", Error,
        "a training set whose annotations all have \"iscrowd\": 1", "stops", "trains on nothing but background",
        "set iscrowd to 0 where an annotation is one object, as some tools write 1 for every mask of run lengths";
    AnnotationCrowdAllEvaluated = "annotation-crowd-all-evaluated", Warning,
        "a validation set whose annotations all have \"iscrowd\": 1", "there is nothing to find: metrics are -1", "the same",
        "set iscrowd to 0 where an annotation is one object, as some tools write 1 for every mask of run lengths";
    AnnotationCrowdMissing = "annotation-crowd-missing", Warning,
        "an annotation without iscrowd", "taken for no crowd", "trains; its evaluator crashes",
        "add \"iscrowd\": 0";
    AnnotationAreaMissing = "annotation-area-missing", Warning,
        "an annotation without area", "the area of the mask, or of the box, where one is needed", "crashes",
        "add the area of the mask in pixels";
    AnnotationAreaText = "annotation-area-text", Warning,
        "an area that is a string", "read as the number in it", "crashes",
        "write it as a number";
    AnnotationAreaZero = "annotation-area-zero", Warning,
        "an annotation with an area of 0 or less, whose box is not empty", "not trained on", "the same",
        "correct the area, or remove the annotation";
    // Boxes.
    BoxMissing = "box-missing", Error,
        "an annotation with neither box nor mask", "stops", "crashes",
        "add bbox = [x, y, width, height] and a mask, or remove the annotation";
    BoxFromMask = "box-from-mask", Warning,
        "an annotation with a mask and no box", "the box around the mask", "crashes",
        "add bbox = [x, y, width, height]";
    BoxText = "box-text", Warning,
        "a box whose numbers are strings", "read as numbers", "crashes",
        "write the box as numbers";
    BoxNotFinite = "box-not-finite", Warning,
        "a box with NaN or Infinity in the training set", "not trained on unless only its far side is infinite", "the same",
        "correct the box";
    BoxNotFiniteEvaluated = "box-not-finite-evaluated", Error,
        "a box with NaN or Infinity in the validation set", "stops", "goes on: its evaluator takes any detection for a hit",
        "correct the box, or remove the annotation";
    BoxNormalized = "box-normalized", Warning,
        "a box that looks like fractions of the image, not pixels", "not trained on, as it is under one pixel", "the same",
        "multiply x and width by the image's width, y and height by its height";
    BoxEmpty = "box-empty", Warning,
        "a box under one pixel wide or high, perhaps of negative size", "not trained on", "the same",
        "correct the box, or remove the annotation";
    BoxElsewhere = "box-elsewhere", Warning,
        "a box that lies outside of its image", "not trained on", "the same",
        "correct the box, or remove the annotation";
    BoxOutside = "box-outside", Warning,
        "a box that reaches more than one pixel out of its image", "used as it is, clipped after resizing", "the same",
        "check the export: pixels from the top left corner are expected";
    // Masks.
    MaskMissing = "mask-missing", Error,
        "an object of the training set without a mask: none, an empty list, or a first polygon of fewer than three points (4 numbers are no box)",
        "stops", "crashes",
        "add a polygon [[x, y, x, y, x, y, ...]] or run lengths, or remove the annotation";
    MaskMissingEvaluated = "mask-missing-evaluated", Warning,
        "an object of the validation set without a mask, as for mask-missing, where boxes alone are evaluated", "used like any other", "the same",
        "add masks if masks are to be evaluated";
    MaskNeeded = "mask-needed", Error,
        "an object of the validation set without a mask, where masks are evaluated", "stops", "crashes at the first evaluation",
        "add masks, or evaluate boxes alone: --eval bbox (test), evaluation.metrics = [\"bbox\"] (training)";
    MaskMalformed = "mask-malformed", Error,
        "a segmentation that is neither polygons nor run lengths, or whose numbers are wrong", "stops", "crashes",
        "mend or remove the annotation";
    MaskText = "mask-text", Warning,
        "a polygon or run lengths with numbers that are strings", "read as numbers", "crashes",
        "write them as numbers";
    MaskFlat = "mask-flat", Warning,
        "a polygon without its enclosing list", "taken for a mask of one polygon", "crashes",
        "write [[x, y, ...]]";
    MaskOdd = "mask-odd", Warning,
        "a polygon of an odd number of numbers", "the last number is passed over", "the same",
        "correct the polygon";
    MaskFewPoints = "mask-few-points", Warning,
        "a polygon of fewer than three points beside others", "dropped", "crashes if it is the first, else dropped",
        "correct or remove the polygon";
    MaskShort = "mask-short", Warning,
        "run lengths that end before the last pixel", "the rest is background", "the same",
        "export the mask again";
    MaskEmpty = "mask-empty", Warning,
        "a mask without a pixel, with a box that has some: polygons without area or outside of the image, run lengths of background alone",
        "not trained on; in evaluation no mask can match it", "trains on the empty mask; evaluates the same",
        "correct the mask, or remove the annotation";
    MaskOutside = "mask-outside", Warning,
        "a polygon that reaches more than one pixel out of its image", "cut off at the border", "the same",
        "check the export: pixels from the top left corner are expected";
    MaskBoxDiffers = "mask-box-differs", Warning,
        "a box and a mask that do not fit each other (more than 2 pixels and 5 % of the box apart)", "both are used as they are", "the same",
        "check which of the two is right";
    // Both sets.
    SplitCategories = "split-categories", Error,
        "the sets for training and validation have other classes, or the same in another order",
        "stops", "goes on: every label of the one set means another class in the other",
        "export both sets with one list of categories, or name the common ones in data.classes";
    SplitCategoryIds = "split-category-ids", Warning,
        "a class has another id in the validation set than in the training set",
        "used as it is: labels follow the order of the classes; results have the ids of the validation set", "the same",
        "export both sets with one list of categories";
    SplitSharedImages = "split-shared-images", Warning,
        "an image of the validation set is trained on too", "used in both", "the same",
        "remove it from one of the sets, else the metrics are too good";
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
