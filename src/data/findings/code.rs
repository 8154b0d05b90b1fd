//! The codes of findings, each with its facts in one place.

use std::fmt;

use serde::Serialize;

/// What a finding means for the job.
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
pub struct Facts {
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
        /// A kind of finding; its name is what `check-data` prints.
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
            pub fn facts(self) -> Facts {
                match self {
                    $(Self::$code => Facts {
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
    // Annotation files.
    FileUnreadable = "file-unreadable", Error,
        "the annotation file cannot be read", "stops", "crashes",
        "correct the path in the config (FNET_DATA_ROOT replaces data.root), or the rights of the file";
    FolderMissing = "folder-missing", Error,
        "the folder of the pictures does not exist", "stops", "crashes at the first picture",
        "put the pictures there, or correct img_prefix in the config";
    // Boxes.
    BoxMissing = "box-missing", Error,
        "an annotation without a box", "stops", "crashes (`KeyError: 'bbox'`)",
        "add bbox = [x, y, width, height], or remove the annotation";
    BoxOutside = "box-outside", Warning,
        "a box that reaches outside of its picture", "used as it is; clipped after resizing", "the same",
        "check the export: pixels from the top left corner are expected";
    // Pictures.
    PictureMissing = "picture-missing", Error,
        "the file of a picture does not exist", "stops", "crashes when the picture is loaded",
        "add the file, or remove the image from the annotation file";
    PictureUnreadable = "picture-unreadable", Error,
        "a picture cannot be decoded", "stops, or leaves it out under data.on_error = \"skip\"", "crashes when it is loaded",
        "replace the file";
    PictureDamaged = "picture-damaged", Warning,
        "a picture is damaged, but what can be decoded is used", "used as OpenCV decodes it: the rest is grey", "the same",
        "replace the file";
    PictureSizeDiffers = "picture-size-differs", Warning,
        "width and height of the annotation file are not those of the picture", "masks are drawn at the listed size and resized as the picture is", "the same; crashes where the listed size is the larger",
        "correct width and height in the annotation file, or the picture";
    PictureExtension = "picture-extension", Note,
        "a picture's format is not what its name says", "decoded by its content", "the same",
        "rename the file if other programs stumble over it";
    // Both sets.
    SplitCategories = "split-categories", Error,
        "the sets for training and validation have other classes or another order of them", "stops", "trains, and scores every class with the labels of another",
        "export both sets with one list of categories, or name the common ones in data.classes";
    SplitSharedPictures = "split-shared-pictures", Warning,
        "pictures are in the set for training and in that for validation", "used in both", "the same",
        "remove them from one of the sets: the metrics are too good otherwise";
    ClassCount = "class-count", Error,
        "model.num_classes is not the number of classes of the set", "stops", "stops (`CheckNumClassesHook`) or crashes in the loss",
        "set model.num_classes to the number of classes, or name the wanted ones in data.classes";
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
