use prost::encoding::encode_varint;

use super::*;
use crate::onnx::proto::{
    AttributeProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
};

fn bytes(message: &impl prost::Message) -> Bytes {
    message.encode_to_vec().into()
}

/// Field `number` with a value of this wire type.
fn encoded(number: u32, wire_type: WireType) -> Vec<u8> {
    let mut out = Vec::new();
    encode_varint(wire_type.key(number), &mut out);
    match wire_type {
        WireType::LengthDelimited => out.push(0),
        WireType::ThirtyTwoBit => out.extend([0; 4]),
        WireType::SixtyFourBit => out.extend([0; 8]),
        _ => encode_varint(0, &mut out),
    }
    out
}

#[test]
fn a_field_of_the_schema_is_there_once() {
    let mut tried = 0;
    for message in MESSAGES {
        for field in message.fields {
            let once = encoded(field.number, field.wire_type);
            let twice = [&once[..], &once].concat();
            let found = |bytes: Vec<u8>| check(message.name, &bytes.into());
            let name = format!("{}.{}", message.name, field.name);
            // Alone some fields say something that nothing else confirms: only what is said of the second counts.
            let said = |result: Result<Vec<Unknown>, OnnxError>| result.err().map(|e| e.to_string());
            let (once, twice) = (said(found(once)), said(found(twice)));
            if field.is_repeated {
                assert!(!twice.is_some_and(|e| e.contains("is there twice")), "{name}");
            } else {
                assert!(twice.is_some_and(|e| e.contains("is there twice")), "{name}");
                assert!(!once.is_some_and(|e| e.contains("is there twice")), "{name}");
                tried += 1;
            }
        }
    }
    assert!(tried > 60, "{tried}");
}

#[test]
fn a_field_has_the_encoding_of_its_type() {
    for message in MESSAGES {
        for field in message.fields {
            for wire_type in [WireType::Varint, WireType::LengthDelimited, WireType::ThirtyTwoBit] {
                let packed = field.is_repeated && field.message.is_none();
                let right = wire_type == field.wire_type || packed && wire_type == WireType::LengthDelimited;
                let said = check(message.name, &encoded(field.number, wire_type).into());
                let refused = said.is_err_and(|e| e.to_string().contains("not encoded as its type is"));
                assert_eq!(refused, !right, "{}.{} as {wire_type:?}", message.name, field.name);
            }
        }
    }
}

#[test]
fn keys_are_there_once() {
    let entry = |key: &str| StringStringEntryProto { key: Some(key.into()), value: Some(key.into()) };
    let attribute = |name: &str| AttributeProto { name: Some(name.into()), ..AttributeProto::default() };
    let opset =
        |domain: Option<&str>| OperatorSetIdProto { domain: domain.map(Into::into), version: Some(1) };
    let external = |keys: [&str; 2]| TensorProto {
        external_data: keys.map(entry).to_vec(),
        data_location: Some(1),
        ..TensorProto::default()
    };
    let refused = |message: &str, bytes: Bytes| check(message, &bytes).is_err();
    assert!(!refused("TensorProto", bytes(&external(["offset", "length"]))));
    assert!(refused("TensorProto", bytes(&external(["offset", "offset"]))));
    for (second, is_refused) in [("b", false), ("a", true)] {
        let node = NodeProto { attribute: vec![attribute("a"), attribute(second)], ..NodeProto::default() };
        assert_eq!(refused("NodeProto", bytes(&node)), is_refused);
        let node = NodeProto { metadata_props: vec![entry("a"), entry(second)], ..NodeProto::default() };
        assert_eq!(refused("NodeProto", bytes(&node)), is_refused);
    }
    for (second, is_refused) in [(Some("ai.onnx"), true), (Some(""), true), (None, true), (Some("x"), false)]
    {
        let model = ModelProto { opset_import: vec![opset(None), opset(second)], ..ModelProto::default() };
        assert_eq!(refused("ModelProto", bytes(&model)), is_refused, "{second:?}");
    }
}

#[test]
fn an_attribute_has_one_value_of_its_type() {
    let attribute = AttributeProto { name: Some("a".into()), ..AttributeProto::default() };
    let refused = |attribute: AttributeProto| check("AttributeProto", &bytes(&attribute)).is_err();
    assert!(!refused(AttributeProto { i: Some(1), r#type: Some(2), ..attribute.clone() }));
    assert!(!refused(AttributeProto { i: Some(1), ..attribute.clone() }));
    assert!(refused(AttributeProto { i: Some(1), r#type: Some(1), ..attribute.clone() }));
    assert!(refused(AttributeProto { i: Some(1), f: Some(1.0), ..attribute.clone() }));
    assert!(refused(AttributeProto { ints: vec![1], floats: vec![1.0], r#type: Some(7), ..attribute }));
}

#[test]
fn elements_are_in_one_place_and_fit_the_shape() {
    let two = TensorProto { dims: vec![2], data_type: Some(1), ..TensorProto::default() };
    let refused = |tensor: TensorProto| check("TensorProto", &bytes(&tensor)).is_err();
    assert!(!refused(TensorProto { raw_data: Some(vec![0; 8].into()), ..two.clone() }));
    assert!(!refused(TensorProto { float_data: vec![0.0; 2], ..two.clone() }));
    assert!(refused(two.clone()));
    assert!(refused(TensorProto { raw_data: Some(vec![0; 7].into()), ..two.clone() }));
    assert!(refused(TensorProto { float_data: vec![0.0; 3], ..two.clone() }));
    assert!(refused(TensorProto { int32_data: vec![0; 2], ..two.clone() }));
    let both = TensorProto { float_data: vec![0.0; 2], raw_data: Some(vec![0; 8].into()), ..two.clone() };
    assert!(refused(both));
    assert!(refused(TensorProto { raw_data: Some(Bytes::new()), float_data: vec![0.0; 2], ..two.clone() }));
    let location = StringStringEntryProto { key: Some("location".into()), value: Some("x".into()) };
    let external = TensorProto { external_data: vec![location], data_location: Some(1), ..two.clone() };
    assert!(!refused(external.clone()));
    assert!(refused(TensorProto { data_location: None, ..external.clone() }));
    assert!(refused(TensorProto { float_data: vec![0.0; 2], ..external }));
    assert!(refused(TensorProto { dims: vec![-2], ..two.clone() }));
    for (data_type, raw) in [(22, 1), (21, 1), (25, 1), (10, 4), (15, 32), (9, 2)] {
        let tensor = |len: usize| TensorProto {
            data_type: Some(data_type),
            raw_data: Some(vec![0; len].into()),
            ..two.clone()
        };
        assert!(!refused(tensor(raw)) && refused(tensor(raw + 1)), "type {data_type}");
    }
    let strings =
        |n: usize| TensorProto { data_type: Some(8), string_data: vec![Bytes::new(); n], ..two.clone() };
    assert!(!refused(strings(2)) && refused(strings(1)));
}

#[test]
fn elements_are_whole() {
    let tensor = |field: u32, data_type: i32, elements: &[u8]| {
        let mut tensor =
            bytes(&TensorProto { dims: vec![1], data_type: Some(data_type), ..Default::default() }).to_vec();
        encode_varint(WireType::LengthDelimited.key(field), &mut tensor);
        encode_varint(elements.len() as u64, &mut tensor);
        tensor.extend(elements);
        check("TensorProto", &tensor.into()).err().map(|error| error.to_string())
    };
    // In 10 bytes a varint has 70 bits; only the lowest of the last byte counts.
    let largest = [&[0xFF; 9][..], &[1]].concat();
    let too_large = [&[0xFF; 9][..], &[2]].concat();
    let cases: [(u32, i32, &[u8], &[u8]); 4] = [
        (field::INT64_DATA, 7, &largest, &too_large),
        (field::INT64_DATA, 7, &[1], &[1, 0x80]),
        (field::FLOAT_DATA, 1, &[0; 4], &[0; 6]),
        (field::DOUBLE_DATA, 11, &[0; 8], &[0; 9]),
    ];
    for (field, data_type, whole, broken) in cases {
        assert_eq!(tensor(field, data_type, whole), None);
        let said = tensor(field, data_type, broken).unwrap_or_default();
        assert!(said.contains("the middle of one"), "{field}: {said}");
    }
}
