use proptest::prelude::*;

use super::*;

fn value(bytes: &[u8]) -> Value {
    read(bytes, &mut NoStorages).unwrap().0
}

fn refusal(bytes: &[u8]) -> String {
    read(bytes, &mut NoStorages).unwrap_err().to_string()
}

#[test]
fn numbers_text_and_containers_are_read() {
    // {"a": [1, -2, 2.5, None, True], "b": (b"x", 2 ** 40)}
    let bytes = b"\x80\x02}(X\x01\0\0\0a](K\x01J\xfe\xff\xff\xffG@\x04\0\0\0\0\0\0N\x88eX\x01\0\0\0bC\x01x\x8a\x06\0\0\0\0\0\x01\x86u.";
    let value = value(bytes);
    let numbers = value.get("a").unwrap().as_items().unwrap();
    assert_eq!(numbers[..2].iter().map(|item| item.as_int().unwrap()).collect::<Vec<_>>(), [1, -2]);
    assert_eq!(numbers[2].as_f64(), Some(2.5));
    assert!(matches!(numbers[3..], [Value::None, Value::Bool(true)]));
    let pair = value.get("b").unwrap().as_items().unwrap();
    assert!(matches!(&pair[0], Value::Bytes(bytes) if **bytes == *b"x"));
    assert_eq!(pair[1].as_int(), Some(1 << 40));
}

#[test]
fn the_length_of_a_pickle_is_returned_and_the_rest_is_not_read() {
    assert_eq!(read(b"\x80\x02N.rest", &mut NoStorages).unwrap().1, 4);
}

#[test]
fn unknown_calls_are_not_executed_and_only_their_names_are_kept() {
    let value = value(b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R.");
    assert!(matches!(&value, Value::Opaque(name) if &**name == "os.system"), "{value:?}");
}

#[test]
fn an_unknown_dict_subclass_is_read_as_a_dictionary_without_its_state() {
    let value = value(b"\x80\x02cmmcv\nConfigDict\n)\x81X\x01\0\0\0kK\x07s}X\x01\0\0\0zNsb.");
    assert_eq!(value.get("k").and_then(Value::as_int), Some(7));
    assert_eq!(value.entries().len(), 1);
}

#[test]
fn an_ordered_dict_keeps_its_order_and_its_metadata_is_skipped() {
    let value =
        value(b"\x80\x02ccollections\nOrderedDict\n)R(X\x01\0\0\0bK\x01X\x01\0\0\0aK\x02u}X\x09\0\0\0_metadataNsb.");
    let keys: Vec<_> = value.entries().iter().map(|(key, _)| key.as_str().unwrap()).collect();
    assert_eq!(keys, ["b", "a"]);
}

#[test]
fn lengths_beyond_the_end_are_refused_without_allocating_memory() {
    for bytes in [
        &b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fx."[..],
        b"\x80\x02X\xff\xff\xff\xffx.",
        b"\x80\x02\x8b\xff\xff\xff\x7fx.",
        b"\x80\x02cabc",
        b"\x80\x02",
        b"",
    ] {
        assert!(refusal(bytes).contains("too early"), "{bytes:?}");
    }
}

#[test]
fn damaged_stacks_are_refused() {
    for bytes in [
        &b"\x80\x02."[..],
        b"\x80\x020.",
        b"\x80\x02t.",
        b"\x80\x02N(\x85.",
        b"\x80\x02Na.",
        b"\x80\x02}(Nu.",
        b"\x80\x02NNs.",
        b"\x80\x02h\x05.",
        b"\x80\x02NR.",
        b"\x80\x02NN\x93.",
        b"\x80\x02NQ.",
        b"\x80\x02N)R.",
        b"\x80\x07N.",
        b"\x80\x02\xff.",
    ] {
        assert!(read(bytes, &mut NoStorages).is_err(), "{bytes:?}");
    }
}

#[test]
fn numpy_scalars_become_numbers() {
    // numpy.float64(0.5): scalar(dtype("f8", False, True), b"...")
    let mut bytes = b"\x80\x03cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x02\0\0\0f8\x89\x88\x87R(K\x03X\x01\0\0\0<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tbC\x08".to_vec();
    bytes.extend(0.5_f64.to_le_bytes());
    bytes.extend(b"\x86R.");
    assert_eq!(value(&bytes).as_f64(), Some(0.5));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_reader_never_panics(bytes in prop::collection::vec(
        prop_oneof![4 => prop::sample::select(b"\x80\x02().0129NGJKMXTUBC]}labcdehjqrstuQR\x81\x82\x85\x86\x87\x88\x8a\x8c\x90\x91\x92\x93\x94\x95\x96\n".to_vec()),
                    1 => any::<u8>()], 0..200))
    {
        let mut whole = b"\x80\x04".to_vec();
        whole.extend(bytes);
        let _ = read(&whole, &mut NoStorages);
    }
}
