//! `predict`: its inputs, the formats of its results, and what it says at the end.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;

use crate::outputs::{files, object};
use crate::support::Scene;

const PREDICT: &str = "--device cpu --nproc 1 predict work_dirs/cfg/latest.ckpt";

/// Writes the validation set as `other.json` with category ids that count from 11.
fn write_other_ids(scene: &Scene) {
    let mut set = object(&scene.path("data/annotations/instances_val.json"));
    let renumber = |of: &mut Value, key: &str| of[key] = (of[key].as_u64().unwrap() + 10).into();
    set["categories"].as_array_mut().unwrap().iter_mut().for_each(|category| renumber(category, "id"));
    set["annotations"].as_array_mut().unwrap().iter_mut().for_each(|annotation| renumber(annotation, "category_id"));
    fs::write(scene.path("data/other.json"), Value::Object(set).to_string()).unwrap();
}

#[test]
fn each_format_has_the_same_objects_with_the_category_ids_of_the_annotation_file() {
    let scene = Scene::with_detector(4, 3);
    write_other_ids(&scene);
    let run = |options: &str| scene.launch(&format!("{PREDICT} data/val --score-thr 0.13 {options}"));
    run("--out coco --set data.val.ann_file=other.json").expect(
        0,
        &["of 3 images", "category ids are those of data/other.json", "images and results.json are in coco"],
    );
    run("--out json --format json --no-images --set data.val.ann_file=other.json")
        .expect(0, &["with a score below 0.13", "results.json is in json"]);
    run("--out csv --format csv --no-images --set data.val.ann_file=none.json")
        .expect(0, &["category ids count the classes from 1, because data/none.json is not there"]);
    assert_eq!(files(&scene.path("coco"), ".jpg").len(), 3);
    assert!(files(&scene.path("json"), ".jpg").is_empty() && files(&scene.path("csv"), ".jpg").is_empty());

    let coco: Vec<Value> = serde_json::from_slice(&fs::read(scene.path("coco/results.json")).unwrap()).unwrap();
    assert!(coco.len() > 20, "{} objects prove little", coco.len());
    let json = object(&scene.path("json/results.json"));
    let keys: Vec<&String> = json.keys().collect();
    assert_eq!(keys, ["score_threshold", "categories", "images", "unreadable"]);
    assert_eq!((json["score_threshold"].as_f64(), json["unreadable"].as_array().unwrap().len()), (Some(0.13), 0));
    let names: BTreeMap<u64, &str> = json["categories"]
        .as_array()
        .unwrap()
        .iter()
        .map(|category| (category["id"].as_u64().unwrap(), category["name"].as_str().unwrap()))
        .collect();
    let other = object(&scene.path("data/other.json"));
    let ids: Vec<u64> = other["categories"].as_array().unwrap().iter().map(|one| one["id"].as_u64().unwrap()).collect();
    assert_eq!(names.keys().copied().collect::<Vec<_>>(), ids);
    assert_ne!(ids, (1..=8).collect::<Vec<_>>(), "the ids say more than the order");
    let mut rest = coco.iter();
    for (image, id) in json["images"].as_array().unwrap().iter().zip(1..) {
        let keys: Vec<&String> = image.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["image_id", "file_name", "path", "painted", "width", "height", "objects"]);
        assert_eq!((image["image_id"].as_u64(), &image["painted"]), (Some(id), &Value::Null));
        let path = image["path"].as_str().unwrap();
        assert_eq!(path, format!("data/val/{}", image["file_name"].as_str().unwrap()));
        let (width, height) = image::image_dimensions(scene.path(path)).unwrap();
        assert_eq!((image["width"].as_u64(), image["height"].as_u64()), (Some(width.into()), Some(height.into())));
        for one in image["objects"].as_array().unwrap() {
            let entry = rest.next().unwrap();
            for key in ["category_id", "category_name", "bbox", "score", "segmentation"] {
                assert_eq!(entry[key], one[key], "{key}");
            }
            for key in ["image_id", "file_name", "path"] {
                assert_eq!(entry[key], image[key], "{key}");
            }
            assert_eq!(names[&one["category_id"].as_u64().unwrap()], one["category_name"].as_str().unwrap());
            assert_eq!(one["segmentation"]["size"], serde_json::json!([height, width]));
            assert_eq!(one["bbox"].as_array().unwrap().len(), 4);
        }
    }
    assert!(rest.next().is_none());

    let csv = fs::read_to_string(scene.path("csv/results.csv")).unwrap();
    let mut lines = csv.lines();
    let header = "image_id,file_name,path,category_id,category_name,score,x,y,width,height";
    assert_eq!(lines.next(), Some(header));
    assert_eq!(lines.clone().count(), coco.len());
    for (line, entry) in lines.zip(&coco) {
        let fields: Vec<&str> = line.split(',').collect();
        assert_eq!(fields.len(), 10, "{line}");
        assert_eq!(fields[0], entry["image_id"].to_string());
        assert_eq!(Some(ids[fields[3].parse::<usize>().unwrap() - 1]), entry["category_id"].as_u64());
        assert_eq!((fields[2], fields[4]), (entry["path"].as_str().unwrap(), entry["category_name"].as_str().unwrap()));
        assert!((fields[6].parse::<f64>().unwrap() - entry["bbox"][0].as_f64().unwrap()).abs() < 1e-3);
    }
    run("--out x --format xml").expect(2, &["coco, json, csv"]);
}

#[test]
fn images_of_equal_names_and_those_that_cannot_be_read_stop_no_other() {
    let scene = Scene::with_detector(4, 3);
    let images = files(&scene.path("data/val"), ".jpg");
    for (folder, image) in ["a", "b"].iter().zip(&images) {
        fs::create_dir_all(scene.path(folder)).unwrap();
        fs::copy(image, scene.path(folder).join("x.jpg")).unwrap();
    }
    fs::write(scene.path("a/broken.png"), "no image").unwrap();
    fs::write(scene.path("list.txt"), "a/x.jpg\n\nmissing.jpg\nb/x.jpg\n").unwrap();
    let missing = "list.txt:3: image missing.jpg";
    let ended = scene.launch(&format!("{PREDICT} --list list.txt --out listed --score-thr 1"));
    ended.expect(
        3,
        &[missing, "0 objects painted in 0 of 2 images", "2 images without an object", "1 of 3 images could not"],
    );
    let skipping =
        scene.launch(&format!("{PREDICT} --list list.txt --out again --format json --set data.on_error=skip"));
    skipping.expect(0, &[&format!("not read: {missing}")]);
    assert_eq!(object(&scene.path("again/results.json"))["unreadable"].as_array().unwrap().len(), 1);
    for folder in ["listed", "again"] {
        let bytes = ["x.jpg", "x_2.jpg"].map(|name| fs::read(scene.path(folder).join(name)).unwrap());
        assert_ne!(bytes[0], bytes[1], "each input has its own output");
    }
    let again = object(&scene.path("again/results.json"));
    let painted: Vec<_> =
        again["images"].as_array().unwrap().iter().map(|image| (&image["path"], &image["painted"])).collect();
    assert_eq!(painted, [(&"a/x.jpg".into(), &"x.jpg".into()), (&"b/x.jpg".into(), &"x_2.jpg".into())]);

    let matched = scene.launch(&format!("{PREDICT} [ab]/*.[jp]* --out matched"));
    matched.expect(3, &["not read: image a/broken.png", "of 2 images", "1 of 3 images could not be read"]);
    assert!(scene.path("matched/a/x.jpg").is_file() || scene.path("matched/x.jpg").is_file());
    scene.launch(&format!("{PREDICT} c/*.jpg --out none")).expect(3, &["no image matches the pattern c/*.jpg"]);
    scene.launch(&format!("{PREDICT} none.jpg --out none")).expect(3, &["none.jpg: no such file"]);
    scene.launch(&format!("{PREDICT} --list none.txt --out none")).expect(3, &["list none.txt: no such file"]);
    scene.launch(&format!("{PREDICT} --out none")).expect(2, &["IMAGE_OR_DIR"]);
}
