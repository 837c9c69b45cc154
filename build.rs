//! Compiles `proto/onnx.proto` with protox (no `protoc` needed) and prost, and lists its messages for the checks of
//! what a file holds.

use std::{env, error::Error, fmt::Write, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto/onnx.proto");
    let descriptors = protox::compile(["proto/onnx.proto"], ["proto"])?;
    let mut config = prost_build::Config::new();
    // `Bytes` fields are slices of the buffer they are decoded from: tensors stay where they are.
    config.bytes(["."]);
    // Few attributes have these. Inline they would make every attribute four times as large, and a UNet has thousands.
    for field in ["t", "g", "sparse_tensor", "tp"] {
        config.boxed(format!(".onnx.AttributeProto.{field}"));
    }
    // The spec's comments are Markdown of their own and would be run as doc tests.
    config.disable_comments(["."]);
    let folder = PathBuf::from(env::var("OUT_DIR")?);
    let mut messages = Vec::new();
    for file in &descriptors.file {
        let of_file = file.message_type.iter().map(|m| (m.name().to_string(), m));
        let mut open: Vec<_> = of_file.collect();
        while let Some((name, message)) = open.pop() {
            open.extend(message.nested_type.iter().map(|inner| (format!("{name}.{}", inner.name()), inner)));
            messages.push((name, message));
        }
    }
    messages.sort_by(|(a, _), (b, _)| a.cmp(b));
    let place = |type_name: &str| {
        let name = type_name.strip_prefix(".onnx.").unwrap_or(type_name);
        messages.iter().position(|(other, _)| other == name)
    };
    let mut table = String::from("&[");
    for (name, message) in &messages {
        write!(table, "Message {{ name: {name:?}, fields: &[")?;
        for field in &message.field {
            // Numbers of `FieldDescriptorProto.Type` and `Label`.
            let (wire, kind) = (field.r#type() as i32, place(field.type_name()));
            let wire_type = match wire {
                1 => "SixtyFourBit",
                2 => "ThirtyTwoBit",
                9 | 11 | 12 => "LengthDelimited",
                3 | 4 | 5 | 8 | 13 | 14 => "Varint",
                other => return Err(format!("{name}.{}: type {other}", field.name()).into()),
            };
            let message = if wire == 11 {
                format!("Some({})", kind.ok_or("an unknown message")?)
            } else {
                "None".into()
            };
            write!(
                table,
                "Field {{ number: {}, name: {:?}, wire_type: WireType::{wire_type}, is_repeated: {}, message: {message}, \
                 oneof: {:?} }},",
                field.number(),
                field.name(),
                field.label() as i32 == 3,
                field.oneof_index,
            )?;
        }
        table.push_str("] },\n");
    }
    table.push(']');
    fs::write(folder.join("schema.rs"), table)?;
    config.compile_fds(descriptors)?;
    fs::metadata(folder.join("onnx.rs"))?;
    Ok(())
}
