//! The bytes are the pickle within a sound `pytorch_model.bin` that holds one storage, `data/0` of 64 bytes. Mutations that
//! change the pickle's length would break the archive in the target `pickle`; here they reach the machine that runs it.

#![no_main]

use std::io::{Cursor, Write};

use libfuzzer_sys::fuzz_target;
use oq_formats::Checkpoint;
use oq_fuzz::{read_all, write};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

fn archive(pickle: &[u8]) -> zip::result::ZipResult<Vec<u8>> {
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    zip.start_file("m/data.pkl", stored)?;
    zip.write_all(pickle)?;
    zip.start_file("m/data/0", stored)?;
    zip.write_all(&[0; 64])?;
    Ok(zip.finish()?.into_inner())
}

fuzz_target!(|pickle: &[u8]| {
    let archive = archive(pickle).expect("an archive in memory can be written");
    if let Ok(checkpoint) = Checkpoint::open_file(&write("pytorch_model.bin", &archive)) {
        read_all(&checkpoint);
    }
});
