//! docs/config.md: the reference of all fields, generated from the structs.

use std::fmt::Write as _;

use crate::Result;

use super::{fields, load, tree};

const INTRODUCTION: &str = "# Configuration

This page is generated from the structs in `crates/config/src/schema`. After a change there, run
`FNET_UPDATE_DOCS=1 cargo test --release --workspace --lib the_reference_of_all_fields` to update it.

A config is a TOML file. It may inherit from other config files, with paths relative to its own folder:

```toml
base = [\"_base_/mask_rcnn_fasternet_fpn.toml\", \"_base_/coco_instance.toml\", \"_base_/schedule_1x.toml\"]

[optimizer]
lr = 1e-4
```

Later bases override earlier ones, and the file overrides its bases. Tables are merged field by field; lists are
replaced as a whole. If the environment variable FNET_DATA_ROOT is set, it overrides `data.root`. Overrides from the
command line are applied last, `--set key=value`. `data.root` and `model.backbone.pretrained` of a config file may be relative
to the current folder, else to the folder of the file or one above it; those of a checkpoint, to where its job ran, else to
the folder of the checkpoint or one above it. Overrides:

    --set optimizer.lr=0.01 data.train.ann_file=a.json 'data.classes=[\"cat\", \"dog\"]'

Values are TOML; strings need no quotes. `model.pretrained` is short for `model.backbone.pretrained`.
`fnet-launch print-config CONFIG` prints every value and where it came from. Unknown fields, wrong types and values out
of range are errors that name the file, the line and, for unknown fields, the right name: those of MMDetection, Detectron2
and Ultralytics are known, for others it is the most similar one.
";

/// The reference of every section and field, as Markdown.
/// Errors: an internal error if the defaults cannot be written as TOML.
pub fn markdown_reference() -> Result<String> {
    let mut defaults = std::collections::HashMap::new();
    tree::each_leaf(&load::defaults()?, "", &mut |path, value, _| {
        defaults.insert(path.to_owned(), value.to_string());
    });
    let mut out = String::from(INTRODUCTION);
    for (path, field) in fields::all() {
        if field.schema.is_some() {
            continue;
        }
        let _ = write!(out, "\n## `[{path}]`\n\n{}\n", field.description);
        let inside = fields::names_in(path).into_iter().map(|name| tree::join(path, name));
        let leaves: Vec<String> = inside.filter(|path| fields::all()[path].schema.is_some()).collect();
        if leaves.is_empty() {
            continue;
        }
        out.push_str("\n| field | value | default | meaning |\n| --- | --- | --- | --- |\n");
        for leaf in leaves {
            let field = &fields::all()[&leaf];
            let Some(schema) = &field.schema else { continue };
            let name = leaf.rsplit('.').next().unwrap_or(&leaf);
            let otherwise = if fields::entry_fields(schema).is_some() { "{}" } else { "" };
            let default = defaults.get(&leaf).map_or(otherwise, String::as_str);
            let meaning = [field.description.clone(), meanings(schema)].concat();
            let cells =
                [fields::expectation(schema), format!("`{default}`"), meaning].map(|text| text.replace('|', "\\|"));
            let _ = writeln!(out, "| `{name}` | {} |", cells.join(" | "));
        }
        let lists = fields::names_in(path).into_iter().map(|name| tree::join(path, name));
        for (list, schema) in lists.filter_map(|list| Some((list.clone(), fields::all()[&list].schema.as_ref()?))) {
            for kind in fields::kinds(schema) {
                let _ = write!(out, "\n### `{list}`: `kind = \"{}\"`\n\n{}\n", kind.name, kind.description);
                out.push_str("\n| field | value | default | meaning |\n| --- | --- | --- | --- |\n");
                for (name, schema) in kind.fields {
                    let default = schema.get("default").map(ToString::to_string).unwrap_or_default();
                    let meaning = schema.get("description").and_then(serde_json::Value::as_str).unwrap_or_default();
                    let meaning = [meaning.replace('\n', " "), meanings(schema)].concat();
                    let cells = [fields::expectation(schema), format!("`{default}`"), meaning];
                    let _ = writeln!(out, "| `{name}` | {} |", cells.map(|text| text.replace('|', "\\|")).join(" | "));
                }
            }
        }
    }
    Ok(out)
}

/// The meaning of each value of an enum.
fn meanings(schema: &serde_json::Value) -> String {
    let choices = fields::choices(schema);
    let described = choices.iter().filter(|(_, meaning)| !meaning.is_empty());
    described.map(|(word, meaning)| format!(" `{word}`: {meaning}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_of_all_fields_is_up_to_date() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/config.md");
        let expected = markdown_reference().unwrap();
        if std::env::var_os("FNET_UPDATE_DOCS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &expected).unwrap();
        }
        let actual = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(actual == expected, "docs/config.md is out of date; run this test with FNET_UPDATE_DOCS=1");
    }
}
