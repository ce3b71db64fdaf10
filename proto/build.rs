//! Compiles the protocol files with protox, so that no protoc is needed.
use std::fmt::Write as _;

use protox::prost_reflect::{DescriptorPool, FieldDescriptor, MessageDescriptor};

type Failed = Box<dyn std::error::Error>;

fn main() -> Result<(), Failed> {
    println!("cargo:rerun-if-changed=csi.proto");
    println!("cargo:rerun-if-changed=pluginregistration.proto");
    let mut compiler = protox::Compiler::new(["."])?;
    compiler
        .include_imports(true)
        .open_files(["csi.proto", "pluginregistration.proto"])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    // The compiler's own encoding keeps extension options such as csi_secret; those of prost's types would be lost.
    let encoded = compiler.encode_file_descriptor_set();
    let pool = DescriptorPool::decode(encoded.as_slice())?;
    std::fs::write(out.join("descriptors.bin"), encoded)?;
    let secret = SecretFields::find(&pool)?;
    std::fs::write(out.join("redacted.rs"), secret.debug()?)?;
    tonic_prost_build::configure()
        .emit_rerun_if_changed(false)
        .skip_debug(secret.paths())
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}

/// The messages that have a field marked `csi_secret`.
struct SecretFields {
    messages: Vec<MessageDescriptor>,
    is_secret: Box<dyn Fn(&FieldDescriptor) -> bool>,
}

impl SecretFields {
    fn find(pool: &DescriptorPool) -> Result<Self, Failed> {
        let option = pool
            .get_extension_by_name("csi.v1.csi_secret")
            .ok_or("csi.proto defines no csi_secret")?;
        let is_secret = Box::new(move |field: &FieldDescriptor| {
            field.options().get_extension(&option).as_bool() == Some(true)
        });
        let messages = pool
            .all_messages()
            .filter(|message| message.fields().any(|field| is_secret(&field)))
            .collect();
        Ok(Self { messages, is_secret })
    }

    fn paths(&self) -> Vec<String> {
        self.messages
            .iter()
            .map(|m| format!(".{}", m.full_name()))
            .collect()
    }

    /// A `Debug` for each of them that shows a secret's keys and never its values.
    fn debug(&self) -> Result<String, Failed> {
        let mut text = String::new();
        for message in &self.messages {
            let name = message.name();
            if message.oneofs().len() > 0 || message.parent_message().is_some() {
                return Err(
                    format!("{name}: a oneof or nested message beside a secret is not written yet").into(),
                );
            }
            write!(
                text,
                "impl std::fmt::Debug for super::csi::{name} {{\n    \
                 fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {{\n        \
                 f.debug_struct(\"{name}\")"
            )?;
            for field in message.fields() {
                let field_name = field.name();
                if field_name == "volume_context" {
                    write!(
                        text,
                        "\n            .field(\"{field_name}\", &Context(&self.{field_name}))"
                    )?;
                } else if !(self.is_secret)(&field) {
                    write!(text, "\n            .field(\"{field_name}\", &self.{field_name})")?;
                } else if field.is_map() {
                    write!(
                        text,
                        "\n            .field(\"{field_name}\", &Keys(&self.{field_name}))"
                    )?;
                } else {
                    return Err(format!("{name}.{field_name}: only maps are secret in CSI").into());
                }
            }
            text.push_str("\n            .finish()\n    }\n}\n\n");
        }
        Ok(text)
    }
}
