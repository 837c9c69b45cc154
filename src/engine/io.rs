//! Files of tensors: NumPy's .npy and .npz, and ONNX's `TensorProto` files (`test_data_set_*/input_0.pb`).

use std::{
    fs::{self, File},
    io::{BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use ndarray_npy::npy::header::{Header, Layout};

use super::{
    EngineError, HostTensor,
    tensor::{UINT8, from_column_major},
};
use crate::onnx::{DataType, Payload, TensorHeader, tensor::typed_elements};

/// Reads one tensor from a .npy file.
///
/// # Errors
/// [`EngineError`] if the file cannot be read, is not .npy, or holds a type that host tensors don't have.
pub fn read_npy(path: &Path) -> Result<HostTensor, EngineError> {
    let file = File::open(path).map_err(|e| EngineError::io("open", path, e))?;
    npy_from(BufReader::new(file), &path.display().to_string())
}

/// Reads all tensors of a .npz archive, in the archive's order.
///
/// # Errors
/// [`EngineError`] if the file cannot be read, is not .npz, or a tensor has a type that host tensors don't have.
pub fn read_npz(path: &Path) -> Result<Vec<(String, HostTensor)>, EngineError> {
    let broken = |e: zip::result::ZipError| EngineError::tensor(path.display().to_string(), e.to_string());
    let file = File::open(path).map_err(|e| EngineError::io("open", path, e))?;
    let mut archive = zip::ZipArchive::new(BufReader::new(file)).map_err(broken)?;
    let mut tensors = Vec::with_capacity(archive.len());
    for i in 0..archive.len() {
        let entry = archive.by_index(i).map_err(broken)?;
        let name = entry.name().strip_suffix(".npy").unwrap_or(entry.name()).to_string();
        let place = format!("{}, array `{name}`", path.display());
        tensors.push((name, npy_from(entry, &place)?));
    }
    Ok(tensors)
}

/// Writes a tensor as a .npy file (format 1.0, little-endian).
///
/// # Errors
/// [`EngineError`] if the file cannot be written or the type is bfloat16, which NumPy doesn't have.
pub fn write_npy(path: &Path, tensor: &HostTensor) -> Result<(), EngineError> {
    let bytes = to_npy(tensor, &path.display().to_string())?;
    fs::write(path, bytes).map_err(|e| EngineError::io("write", path, e))
}

/// Writes named tensors as an uncompressed .npz archive.
///
/// # Errors
/// [`EngineError`] if the file cannot be written or a type is bfloat16, which NumPy doesn't have.
pub fn write_npz<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (&'a str, &'a HostTensor)>,
) -> Result<(), EngineError> {
    let failed = |e: zip::result::ZipError| EngineError::tensor(path.display().to_string(), e.to_string());
    let file = File::create(path).map_err(|e| EngineError::io("write", path, e))?;
    let mut archive = zip::ZipWriter::new(BufWriter::new(file));
    let stored = zip::write::SimpleFileOptions::default()
        .compression_method(zip::CompressionMethod::Stored)
        .large_file(true);
    for (name, tensor) in tensors {
        let bytes = to_npy(tensor, name)?;
        archive.start_file(format!("{name}.npy"), stored).map_err(failed)?;
        archive.write_all(&bytes).map_err(|e| EngineError::io("write", path, e))?;
    }
    let mut file = archive.finish().map_err(failed)?;
    file.flush().map_err(|e| EngineError::io("write", path, e))
}

/// Reads a `TensorProto` from a .pb file: its name (empty if it has none) and the tensor.
///
/// # Errors
/// [`EngineError`] if the file cannot be read, is no `TensorProto`, keeps its elements in another file, or has a
/// type that host tensors don't have.
pub fn read_tensor_proto(path: &Path) -> Result<(String, HostTensor), EngineError> {
    let place = || path.display().to_string();
    let bytes = fs::read(path).map_err(|e| EngineError::io("read", path, e))?;
    let header =
        TensorHeader::parse(Bytes::from(bytes)).map_err(|e| EngineError::tensor(place(), e.to_string()))?;
    let elements = match &header.payload {
        Payload::Raw(bytes) => bytes.clone(),
        Payload::Typed => typed_elements(&header).map_err(|e| EngineError::tensor(place(), e.to_string()))?,
        Payload::External(range) => {
            let what = format!("its elements are in another file, `{}`", range.location);
            return Err(EngineError::tensor(place(), what));
        }
    };
    let dims = header.dims.iter().map(|d| usize::try_from(*d)).collect::<Result<Vec<_>, _>>();
    let dims = dims.map_err(|_| EngineError::tensor(place(), format!("dimensions {:?}", header.dims)))?;
    let tensor = HostTensor::from_le_bytes(header.data_type, dims, &elements)
        .map_err(|e| EngineError::tensor(place(), e.to_string()))?;
    Ok((header.name, tensor))
}

/// The tensors of one `test_data_set_N` folder, in the order of the files' numbers, each with its name (empty if the
/// file doesn't say; the model's inputs and outputs are then meant in their order).
#[derive(Clone, Debug, Default)]
pub struct TestDataSet {
    /// `input_0.pb`, `input_1.pb`, ...
    pub inputs: Vec<(String, HostTensor)>,
    /// `output_0.pb`, `output_1.pb`, ...
    pub outputs: Vec<(String, HostTensor)>,
}

/// Reads a `test_data_set_N` folder as the ONNX backend tests and exporters lay it out.
///
/// # Errors
/// [`EngineError`] if there is no `input_0.pb`, or a file is not as [`read_tensor_proto`] takes it.
pub fn read_test_data_set(folder: &Path) -> Result<TestDataSet, EngineError> {
    let numbered = |stem: &str| -> Result<Vec<_>, EngineError> {
        (0..)
            .map(|i| folder.join(format!("{stem}_{i}.pb")))
            .take_while(|path| path.exists())
            .map(|path: PathBuf| read_tensor_proto(&path))
            .collect()
    };
    let set = TestDataSet { inputs: numbered("input")?, outputs: numbered("output")? };
    if set.inputs.is_empty() {
        return Err(EngineError::tensor(folder.display().to_string(), "there is no `input_0.pb` in it"));
    }
    Ok(set)
}

fn npy_from(mut reader: impl Read, place: &str) -> Result<HostTensor, EngineError> {
    let broken = |what: String| EngineError::tensor(place, what);
    let header = Header::from_reader(&mut reader).map_err(|e| broken(format!("not a .npy array: {e}")))?;
    let descriptor = header.type_descriptor.as_string().map(String::as_str).unwrap_or("a structured type");
    let data_type = match descriptor {
        "<f4" => DataType::FLOAT,
        "<f2" => DataType::FLOAT16,
        "<f8" => DataType::DOUBLE,
        "<i8" => DataType::INT64,
        "<i4" => DataType::INT32,
        "|u1" => UINT8,
        "|b1" => DataType::BOOL,
        other => {
            return Err(broken(format!(
                "its elements are `{other}`; little-endian float16, float32, float64, int32, int64, uint8 and bool \
                 can be read"
            )));
        }
    };
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).map_err(|e| broken(e.to_string()))?;
    let tensor =
        HostTensor::from_le_bytes(data_type, header.shape, &bytes).map_err(|e| broken(e.to_string()))?;
    Ok(match header.layout {
        Layout::Standard => tensor,
        Layout::Fortran => from_column_major(tensor),
    })
}

fn to_npy(tensor: &HostTensor, place: &str) -> Result<Vec<u8>, EngineError> {
    let descriptor = match tensor.data_type() {
        DataType::FLOAT => "<f4",
        DataType::FLOAT16 => "<f2",
        DataType::DOUBLE => "<f8",
        DataType::INT64 => "<i8",
        DataType::INT32 => "<i4",
        UINT8 => "|u1",
        DataType::BOOL => "|b1",
        other => return Err(EngineError::tensor(place, format!("NumPy has no {}", other.name()))),
    };
    let dims = match tensor.dims() {
        [only] => format!("{only},"),
        dims => dims.iter().map(usize::to_string).collect::<Vec<_>>().join(", "),
    };
    let mut header = format!("{{'descr': '{descriptor}', 'fortran_order': False, 'shape': ({dims}), }}");
    // NumPy leaves room for the first dimension to grow to 21 digits when more is appended to the file.
    if let Some(first) = tensor.dims().first() {
        header.extend(std::iter::repeat_n(' ', 21usize.saturating_sub(first.to_string().len())));
    }
    // The elements begin at a multiple of 64: 10 bytes go before the header, a newline ends it.
    while !(header.len() + 11).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let length = u16::try_from(header.len())
        .map_err(|_| EngineError::tensor(place, "it has too many dimensions for a .npy header"))?;
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(&tensor.to_le_bytes());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    /// The bytes that `numpy.save` of NumPy 2.4.6 writes for small arrays: a header of 128 bytes, then the elements.
    fn saved_by_numpy(header: &str, elements: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00v\x00".to_vec();
        bytes.extend_from_slice(format!("{header:117}\n").as_bytes());
        bytes.extend_from_slice(elements);
        bytes
    }

    #[test]
    fn numpys_own_bytes() {
        let read = |bytes: &[u8]| npy_from(bytes, "a.npy");
        let vector = saved_by_numpy(
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }",
            b"\x00\x00\xc0?\x00\x00\x00\xc0",
        );
        let empty = saved_by_numpy("{'descr': '<i8', 'fortran_order': False, 'shape': (0, 3), }", b"");
        let scalar = saved_by_numpy("{'descr': '|b1', 'fortran_order': False, 'shape': (), }", b"\x01");
        for (bytes, tensor) in [
            (vector, HostTensor::new([2], vec![1.5f32, -2.0]).unwrap()),
            (empty, HostTensor::new([0, 3], Vec::<i64>::new()).unwrap()),
            (scalar, HostTensor::scalar(true)),
        ] {
            assert_eq!(read(&bytes).unwrap(), tensor);
            assert_eq!(to_npy(&tensor, "").unwrap(), bytes);
        }
        let fortran = saved_by_numpy(
            "{'descr': '<f2', 'fortran_order': True, 'shape': (2, 3), }",
            b"\x00<\x00D\x00@\x00E\x00B\x80F",
        );
        let rows = [1.0, 2.0, 3.0, 4.0, 5.0, 6.5].map(f16::from_f32).to_vec();
        assert_eq!(read(&fortran).unwrap(), HostTensor::new([2, 3], rows).unwrap());
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        let error = |bytes: &[u8]| npy_from(bytes, "a.npy").unwrap_err().to_string();
        let big =
            saved_by_numpy("{'descr': '>f4', 'fortran_order': False, 'shape': (1,), }", b"?\xc0\x00\x00");
        assert!(error(&big).starts_with("a.npy: its elements are `>f4`"), "{}", error(&big));
        let short = saved_by_numpy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", b"\0\0\0\0");
        assert!(error(&short).ends_with("it takes 8 bytes, but there are 4"), "{}", error(&short));
        assert!(error(b"not numpy").contains("not a .npy array"), "{}", error(b"not numpy"));
    }

    #[test]
    fn archives_and_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        let tensors = [
            ("16x8/sample", HostTensor::new([1, 2], vec![0.5f32, 1.0]).unwrap()),
            ("step", HostTensor::scalar(7i64)),
        ];
        write_npz(&path, tensors.iter().map(|(n, t)| (*n, t))).unwrap();
        let read = read_npz(&path).unwrap();
        assert_eq!(read, tensors.map(|(n, t)| (n.to_string(), t)));
        let error = read_npz(&folder.path().join("none.npz")).unwrap_err();
        assert!(error.to_string().contains("none.npz: cannot open"), "{error}");
    }
}
