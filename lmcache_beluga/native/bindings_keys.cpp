// Reads LMCache's key objects into records, within the limited Python API.
//
// The keys of one batch nearly always share the objects behind every field but the chunk hash: such
// a stem is encoded for the first key and copied for the rest, on no more evidence than the
// identity of those objects.

#include "bindings_keys.hpp"

#include <nanobind/stl/string.h>

#include <array>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "errors.hpp"

namespace nb = nanobind;

namespace beluga {
namespace {

constexpr const char* kAccepted =
    "a key is an LMCache CacheEngineKey, LayerCacheEngineKey or ObjectKey, or bytes (a record "
    "itself)";

[[noreturn]] void refuse(const std::string& what) {
  throw Error(ErrorKind::invalid_argument, what);
}

std::string type_name(PyTypeObject* type) {
  const nb::object name = nb::steal(PyType_GetName(type));
  if (!name.is_valid()) throw nb::python_error();
  return nb::cast<std::string>(name);
}

// ---- the fields of a key type -------------------------------------------------------------------

/// How a field's value is written into the record.
enum class Form { text, integer, tags, hash, digest };

struct FieldForm {
  const char* name;
  Form form;
};

constexpr std::size_t kMaxFields = 7;

/// What a key type is made of: the fields that its equality compares, in the order of the record.
struct KeyShape {
  const char* type_name;
  KeyKind kind;
  std::size_t fields;
  std::size_t stem;  // of these, the ones that the keys of a batch usually share
  std::array<FieldForm, kMaxFields> field;
  std::array<const char*, 2> ignored;  // fields of the dataclass that say nothing of their own
};

// `dtype` is compared through `_dtype_str`, its name: LMCache's table of names has one for each
// dtype. `request_configs` is not compared, but for the tags that were taken from it.
constexpr std::array<KeyShape, 3> kShapes{{
    {"CacheEngineKey",
     KeyKind::chunk,
     6,
     5,
     {{{"model_name", Form::text},
       {"world_size", Form::integer},
       {"worker_id", Form::integer},
       {"_dtype_str", Form::text},
       {"tags", Form::tags},
       {"chunk_hash", Form::hash}}},
     {"dtype", "request_configs"}},
    {"LayerCacheEngineKey",
     KeyKind::layer,
     7,
     5,
     {{{"model_name", Form::text},
       {"world_size", Form::integer},
       {"worker_id", Form::integer},
       {"_dtype_str", Form::text},
       {"tags", Form::tags},
       {"chunk_hash", Form::hash},
       {"layer_id", Form::integer}}},
     {"dtype", "request_configs"}},
    {"ObjectKey",
     KeyKind::object,
     5,
     4,
     {{{"model_name", Form::text},
       {"kv_rank", Form::integer},
       {"object_group_id", Form::integer},
       {"cache_salt", Form::text},
       {"chunk_hash", Form::digest}}},
     {nullptr, nullptr}},
}};

/// One field of one Python type. Slots are read through their descriptor's own getter, which checks
/// the object's type: several times faster than looking the name up on the type for each key.
struct Field {
  const char* name = nullptr;
  Form form = Form::text;
  PyObject* attribute = nullptr;   // interned name
  PyObject* descriptor = nullptr;  // of a slot, else null
  descrgetfunc get = nullptr;

  [[nodiscard]] nb::object read(PyObject* key) const {
    PyObject* value = get != nullptr
                          ? get(descriptor, key, reinterpret_cast<PyObject*>(Py_TYPE(key)))
                          : PyObject_GetAttr(key, attribute);
    if (value == nullptr) throw nb::python_error();
    return nb::steal(value);
  }
};

/// A Python type that was found to be one of LMCache's key types.
struct KeyType {
  PyTypeObject* type;
  const KeyShape* shape;
  std::array<Field, kMaxFields> fields;
};

/// Throws unless the dataclass has exactly the fields that `shape` knows: one that it does not know
/// might tell two keys apart that would then share a record.
void check_fields(const KeyShape& shape, nb::handle type) {
  const nb::object declared = nb::getattr(type, "__dataclass_fields__", nb::none());
  if (!nb::isinstance<nb::dict>(declared)) {
    refuse(std::string(shape.type_name) + " is not a dataclass: " + kAccepted);
  }
  std::size_t known = 0;
  const auto require = [&](const char* name) {
    if (!nb::borrow<nb::dict>(declared).contains(name)) {
      refuse(std::string(shape.type_name) + " has no field '" + name +
             "': this LMCache is not one that lmcache-beluga knows");
    }
    ++known;
  };
  for (std::size_t i = 0; i < shape.fields; ++i) require(shape.field[i].name);
  for (const char* name : shape.ignored) {
    if (name != nullptr) require(name);
  }
  if (nb::len(declared) != known) {
    refuse(std::string(shape.type_name) + " has " + std::to_string(nb::len(declared)) +
           " fields where lmcache-beluga knows " + std::to_string(known) +
           ": use the LMCache version that the README names, or a newer lmcache-beluga");
  }
}

Field make_field(const FieldForm& form, nb::handle type, nb::handle member_descriptor_type) {
  Field field{.name = form.name, .form = form.form};
  field.attribute = PyUnicode_InternFromString(form.name);
  if (field.attribute == nullptr) throw nb::python_error();
  nb::object descriptor = nb::getattr(type, form.name, nb::none());
  if (descriptor.type().is(member_descriptor_type)) {
    auto* descriptor_type = reinterpret_cast<PyTypeObject*>(member_descriptor_type.ptr());
    field.get = reinterpret_cast<descrgetfunc>(PyType_GetSlot(descriptor_type, Py_tp_descr_get));
    if (field.get != nullptr) field.descriptor = descriptor.release().ptr();
  }
  return field;
}

/// Every key type met so far. An entry keeps its type alive, so that its address is not reused;
/// there is one for each time that LMCache's module was imported.
std::vector<std::unique_ptr<KeyType>>& known_types() {
  static auto* types = new std::vector<std::unique_ptr<KeyType>>();  // outlives the interpreter
  return *types;
}

const KeyType& classify(PyTypeObject* type) {
  for (const auto& known : known_types()) {
    if (known->type == type) return *known;
  }
  const std::string name = type_name(type);
  for (const KeyShape& shape : kShapes) {
    if (name != shape.type_name) continue;
    const nb::handle handle(reinterpret_cast<PyObject*>(type));
    check_fields(shape, handle);
    const nb::object member = nb::module_::import_("types").attr("MemberDescriptorType");
    auto made = std::make_unique<KeyType>(KeyType{type, &shape, {}});
    for (std::size_t i = 0; i < shape.fields; ++i) {
      made->fields[i] = make_field(shape.field[i], handle, member);
    }
    known_types().push_back(std::move(made));
    handle.inc_ref();
    return *known_types().back();
  }
  refuse("a key is of type " + name + ": " + kAccepted);
}

// ---- values -------------------------------------------------------------------------------------

/// A field's value, and what an error calls it.
struct Value {
  PyObject* object;
  const char* field;

  [[noreturn]] void refuse_type(const char* wanted) const {
    refuse(std::string(field) + " is " + type_name(Py_TYPE(object)) + ", not " + wanted);
  }
};

void write_wide_integer(RecordArena& out, nb::handle value) {
  // int's own methods, whatever a subclass made of them.
  const nb::handle type(reinterpret_cast<PyObject*>(&PyLong_Type));
  const bool negative = nb::cast<bool>(type.attr("__lt__")(value, 0));
  const nb::object magnitude =
      negative ? nb::object(type.attr("__invert__")(value)) : nb::borrow(value);
  const auto bits = nb::cast<std::size_t>(type.attr("bit_length")(magnitude));
  const nb::bytes bytes(
      type.attr("to_bytes")(value, bits / 8 + 1, "big", nb::arg("signed") = true));
  msgpack::wide_integer(out, {static_cast<const std::byte*>(bytes.data()), bytes.size()});
}

void write_integer(RecordArena& out, PyObject* value) {
  int overflow = 0;
  const long long narrow = PyLong_AsLongLongAndOverflow(value, &overflow);
  if (overflow == 0) {
    if (narrow == -1 && PyErr_Occurred() != nullptr) throw nb::python_error();
    msgpack::integer(out, narrow);
    return;
  }
  if (overflow > 0) {
    const unsigned long long positive = PyLong_AsUnsignedLongLong(value);
    if (PyErr_Occurred() == nullptr) {
      msgpack::unsigned_integer(out, positive);
      return;
    }
    PyErr_Clear();  // OverflowError: 2^64 or more
  }
  write_wide_integer(out, value);
}

/// int, its subclasses (bool: True == 1), and what converts to it without loss, as NumPy's integers
/// do.
void write_integer(RecordArena& out, const Value& value) {
  if (PyLong_Check(value.object)) {
    write_integer(out, value.object);
    return;
  }
  const nb::object index = nb::steal(PyNumber_Index(value.object));
  if (!index.is_valid()) {
    PyErr_Clear();
    value.refuse_type("int");
  }
  write_integer(out, index.ptr());
}

void write_text(RecordArena& out, const Value& value) {
  if (!PyUnicode_Check(value.object)) value.refuse_type("str");
  Py_ssize_t size = 0;
  const char* utf8 = PyUnicode_AsUTF8AndSize(value.object, &size);
  if (utf8 == nullptr) {
    PyErr_Clear();
    refuse(std::string(value.field) + " has a lone surrogate: it is not valid Unicode text");
  }
  msgpack::string(out, {utf8, static_cast<std::size_t>(size)});
}

void write_bytes(RecordArena& out, PyObject* value) {
  char* data = nullptr;
  Py_ssize_t size = 0;
  if (PyBytes_AsStringAndSize(value, &data, &size) != 0) throw nb::python_error();
  msgpack::binary(out, {reinterpret_cast<const std::byte*>(data), static_cast<std::size_t>(size)});
}

/// Python compares numbers by value, so 1, 1.0 and True have to give one encoding: that of the
/// integer.
void write_real(RecordArena& out, const Value& value) {
  const double number = PyFloat_AsDouble(value.object);
  if (std::isnan(number)) refuse(std::string(value.field) + " is NaN, which equals nothing");
  if (std::isinf(number) || std::trunc(number) != number) {
    msgpack::real(out, number);
    return;
  }
  const nb::object integer = nb::steal(PyLong_FromDouble(number));
  if (!integer.is_valid()) throw nb::python_error();
  write_integer(out, integer.ptr());
}

void write_tag_value(RecordArena& out, const Value& value) {
  if (PyUnicode_Check(value.object)) {
    write_text(out, value);
  } else if (PyLong_Check(value.object)) {
    write_integer(out, value.object);
  } else if (value.object == Py_None) {
    msgpack::nil(out);
  } else if (PyFloat_Check(value.object)) {
    write_real(out, value);
  } else if (PyBytes_Check(value.object)) {
    write_bytes(out, value.object);
  } else {
    value.refuse_type("str, int, float, bool, bytes or None");
  }
}

void write_tags(RecordArena& out, const Value& tags) {
  if (tags.object == Py_None) {
    msgpack::nil(out);
    return;
  }
  if (!PyTuple_Check(tags.object)) tags.refuse_type("tuple");
  const Py_ssize_t count = PyTuple_Size(tags.object);
  msgpack::array(out, static_cast<std::size_t>(count));
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* tag = PyTuple_GetItem(tags.object, i);
    if (!PyTuple_Check(tag) || PyTuple_Size(tag) != 2) {
      refuse("tags holds something else than pairs of name and value");
    }
    msgpack::array(out, 2);
    write_text(out, {PyTuple_GetItem(tag, 0), "the name of a tag"});
    const Value value{PyTuple_GetItem(tag, 1), "the value of a tag"};
    try {
      write_tag_value(out, value);
    } catch (const Error& error) {
      const std::string name = nb::cast<std::string>(nb::handle(PyTuple_GetItem(tag, 0)));
      throw Error(error.kind, "tag '" + name + "': " + error.what());
    }
  }
}

void write_value(RecordArena& out, Form form, const Value& value) {
  switch (form) {
    case Form::text:
      write_text(out, value);
      break;
    case Form::integer:
      write_integer(out, value);
      break;
    case Form::tags:
      write_tags(out, value);
      break;
    case Form::hash:
      if (PyBytes_Check(value.object)) {
        write_bytes(out, value.object);
      } else {
        write_integer(out, value);
      }
      break;
    case Form::digest:
      if (!PyBytes_Check(value.object)) value.refuse_type("bytes");
      write_bytes(out, value.object);
      break;
  }
}

// ---- keys ---------------------------------------------------------------------------------------

/// Writes the records of one batch, and remembers the stem of the last key of LMCache's.
class KeyReader {
 public:
  explicit KeyReader(KeyBatch& batch) : batch_(batch) {}

  void read(PyObject* key) {
    PyTypeObject* type = Py_TYPE(key);
    if (last_ == nullptr || last_->type != type) {
      if (PyBytes_Check(key)) {
        read_record(key);
        return;
      }
      last_ = &classify(type);
      known_ = 0;
    }
    const KeyShape& shape = *last_->shape;
    RecordArena& out = batch_.arena;
    const std::size_t begin = out.size();

    // How many leading fields are the very objects of the key before: their bytes are copied.
    std::size_t same = 0;
    nb::object value;
    for (; same < shape.stem; ++same) {
      value = last_->fields[same].read(key);
      if (same >= known_ || !value.is(values_[same])) break;
    }
    if (same > 0) {
      // Append first: it may move the bytes that are copied from.
      std::byte* to = out.append(ends_[same - 1]);
      std::memcpy(to, out.data() + stem_begin_, ends_[same - 1]);
    } else {
      msgpack::array(out, 2 + shape.fields);
      msgpack::unsigned_integer(out, kRecordForm);
      msgpack::unsigned_integer(out, static_cast<std::uint64_t>(shape.kind));
    }
    if (same < shape.stem) {
      known_ = same;  // until all of the new stem is written
      for (std::size_t i = same; i < shape.stem; ++i) {
        if (i > same) value = last_->fields[i].read(key);
        write(i, value);
        ends_[i] = out.size() - begin;
        values_[i] = std::move(value);
      }
      known_ = shape.stem;
    }
    stem_begin_ = begin;
    for (std::size_t i = shape.stem; i < shape.fields; ++i) {
      write(i, last_->fields[i].read(key));
    }
    batch_.finish_record();
  }

 private:
  void write(std::size_t i, const nb::object& value) {
    write_value(batch_.arena, last_->fields[i].form, {value.ptr(), last_->fields[i].name});
  }

  void read_record(PyObject* key) {
    char* data = nullptr;
    Py_ssize_t size = 0;
    if (PyBytes_AsStringAndSize(key, &data, &size) != 0) throw nb::python_error();
    if (size == 0) refuse("a key is empty bytes");
    batch_.add({reinterpret_cast<const std::byte*>(data), static_cast<std::size_t>(size)});
  }

  KeyBatch& batch_;
  const KeyType* last_ = nullptr;
  std::size_t known_ = 0;                       // leading fields for which the three below hold
  std::size_t stem_begin_ = 0;                  // where in the arena they are encoded
  std::array<std::size_t, kMaxFields> ends_{};  // where each ends, from there
  std::array<nb::object, kMaxFields> values_;   // held, so that no address is reused within a batch
};

[[noreturn]] void refuse_at(Py_ssize_t position, const Error& error) {
  throw Error(error.kind, "keys[" + std::to_string(position) + "]: " + error.what());
}

}  // namespace

void read_keys(PyObject* sequence, KeyBatch& batch) {
  batch.clear();
  if (PyBytes_Check(sequence) || PyUnicode_Check(sequence)) {
    refuse("keys is a single " + type_name(Py_TYPE(sequence)) +
           ", not a sequence of keys: pass [key]");
  }
  const nb::object keys = nb::steal(PySequence_Fast(sequence, "keys is not a sequence of keys"));
  if (!keys.is_valid()) {
    if (PyErr_ExceptionMatches(PyExc_TypeError) == 0) throw nb::python_error();
    PyErr_Clear();
    refuse("keys is " + type_name(Py_TYPE(sequence)) + ", not a sequence of keys");
  }
  const bool list = PyList_Check(keys.ptr()) != 0;
  const Py_ssize_t count = list ? PyList_Size(keys.ptr()) : PyTuple_Size(keys.ptr());
  batch.reserve(static_cast<std::size_t>(count));
  KeyReader reader(batch);
  for (Py_ssize_t i = 0; i < count; ++i) {
    // Held while it is read: an attribute's getter may run Python code, which may change the list.
    PyObject* item = list ? PyList_GetItem(keys.ptr(), i) : PyTuple_GetItem(keys.ptr(), i);
    if (item == nullptr) throw nb::python_error();
    const nb::object key = nb::borrow(item);
    try {
      reader.read(item);
    } catch (const Error& error) {
      refuse_at(i, error);
    }
  }
}

void read_key(PyObject* key, KeyBatch& batch) {
  batch.clear();
  KeyReader(batch).read(key);
}

// ---- the thread's batch -------------------------------------------------------------------------

namespace {

constexpr std::size_t kKeptArena = 4 << 20;  // bytes that an idle thread may hold on to

struct ThreadBatch {
  KeyBatch batch;
  bool lent = false;
};

ThreadBatch& thread_batch() {
  static thread_local ThreadBatch mine;
  return mine;
}

}  // namespace

ScratchBatch::ScratchBatch() : batch_(&thread_batch().batch), own_(thread_batch().lent) {
  if (own_) {
    batch_ = new KeyBatch();
  } else {
    thread_batch().lent = true;
  }
  batch_->clear();
}

ScratchBatch::~ScratchBatch() {
  if (own_) {
    delete batch_;
    return;
  }
  if (batch_->arena.capacity() > kKeptArena) *batch_ = KeyBatch{};
  thread_batch().lent = false;
}

// ---- for Python ---------------------------------------------------------------------------------

void bind_keys(nb::module_& m) {
  m.def(
      "encode_keys",
      [](nb::object keys) {
        const ScratchBatch batch;
        read_keys(keys.ptr(), *batch);
        nb::list records;
        for (std::size_t i = 0; i < batch->size(); ++i) {
          const auto record = batch->record(i);
          records.append(nb::bytes(record.data(), record.size()));
        }
        return records;
      },
      nb::arg("keys"), nb::sig("def encode_keys(keys: Sequence[object]) -> list[bytes]"),
      "The record of each key: see lmcache_beluga.keys. Raises InvalidArgumentError for what is no "
      "key.");
  m.def(
      "fingerprints",
      [](nb::object keys) {
        const ScratchBatch batch;
        read_keys(keys.ptr(), *batch);
        nb::list prints;
        for (const Fingerprint& print : batch->prints) {
          prints.append((nb::int_(print.hi) << nb::int_(64)) | nb::int_(print.lo));
        }
        return prints;
      },
      nb::arg("keys"), nb::sig("def fingerprints(keys: Sequence[object]) -> list[int]"),
      "The 128-bit fingerprint (XXH3) of each key's record. Raises InvalidArgumentError for what "
      "is no key.");
}

}  // namespace beluga
