//! Compiles the protocol files with protox, so that no protoc is needed.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=csi.proto");
    println!("cargo:rerun-if-changed=pluginregistration.proto");
    let mut compiler = protox::Compiler::new(["."])?;
    compiler
        .include_imports(true)
        .open_files(["csi.proto", "pluginregistration.proto"])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    // The compiler's own encoding keeps extension options such as csi_secret; those of prost's types would be lost.
    std::fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure()
        .emit_rerun_if_changed(false)
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
