/* Probes for branch coverage of Python code: tilewright.fuzz._coverage, for CPython 3.11.
 *
 * A probe is a constant of an instrumented code object (fuzz/bytecode.py), reached by four instructions:
 *
 *     NOP; LOAD_CONST probe; UNARY_POSITIVE; POP_TOP
 *
 * Its unary plus notes an arc in a Log and overwrites the NOP by a jump over the other three, so that an arc costs one
 * jump from then on. A probe lives in the constants of its code object and writes to that object only; it is never
 * used after it. While its log is paused, or on another thread than the one that records, a probe does nothing and stays.
 *
 * All state is touched with the interpreter's lock (GIL) held. The interpreter reads instructions from the very memory
 * that is written here (specialization does the same), and never combines a NOP with its neighbours.
 */
#include <Python.h>
#include <opcode.h>

#include <new>
#include <vector>

#if PY_VERSION_HEX < 0x030B0000 || PY_VERSION_HEX >= 0x030C0000
#error "coverage.cpp knows the instructions of CPython 3.11 only; later versions have sys.monitoring"
#endif

namespace {

PyTypeObject *log_type, *probe_type;

/* Which arcs were seen, by their number, and in what order. */
struct Log {
  PyObject_HEAD
  std::vector<uint8_t> seen;
  std::vector<uint32_t> order;
  unsigned long thread; /* the one that records; meaningless while paused */
  bool recording;
};

struct Probe {
  PyObject_HEAD
  Log *log;           /* owned */
  PyCodeObject *code; /* borrowed: its constants own the probe; null until placed */
  Py_ssize_t unit;    /* the place of the NOP */
  uint32_t arc;
  uint8_t skipped; /* units to jump over */
};

/* False with an exception set where memory ran out. */
bool note(Log *log, uint32_t arc) {
  try {
    if (arc >= log->seen.size()) log->seen.resize((size_t)arc + 1 + arc / 2);
    if (log->seen[arc] == 0) {
      log->order.push_back(arc);
      log->seen[arc] = 1;
    }
    return true;
  } catch (const std::bad_alloc &) {
    PyErr_NoMemory();
    return false;
  }
}

PyObject *probe_run(PyObject *self) {
  Probe *probe = (Probe *)self;
  Log *log = probe->log;
  if (log->recording && log->thread == PyThread_get_thread_ident()) {
    if (!note(log, probe->arc)) return nullptr;
    if (probe->code != nullptr) {
      _Py_CODEUNIT *unit = (_Py_CODEUNIT *)probe->code->co_code_adaptive + probe->unit;
      *unit = (_Py_CODEUNIT)(JUMP_FORWARD | probe->skipped << 8);
    }
  }
  Py_RETURN_NONE;
}

PyObject *probe_place(PyObject *self, PyObject *arguments) {
  Probe *probe = (Probe *)self;
  PyCodeObject *code;
  Py_ssize_t unit;
  int skipped;
  if (!PyArg_ParseTuple(arguments, "O!ni", &PyCode_Type, &code, &unit, &skipped)) return nullptr;
  bool inside = unit >= 0 && skipped > 0 && skipped < 256 && unit + skipped < Py_SIZE(code);
  if (!inside || ((_Py_CODEUNIT *)code->co_code_adaptive)[unit] != NOP) {
    PyErr_Format(PyExc_ValueError, "place: found no NOP followed by %d units at unit %zd of %U", skipped, unit, code->co_qualname);
    return nullptr;
  }
  Py_ssize_t constant = PyTuple_GET_SIZE(code->co_consts);
  while (constant > 0 && PyTuple_GET_ITEM(code->co_consts, constant - 1) != self) constant--;
  if (constant == 0) {
    PyErr_Format(PyExc_ValueError, "place: expected the probe to be a constant of %U", code->co_qualname);
    return nullptr;
  }
  probe->code = code;
  probe->unit = unit;
  probe->skipped = (uint8_t)skipped;
  Py_RETURN_NONE;
}

void probe_free(PyObject *self) {
  PyTypeObject *type = Py_TYPE(self);
  Py_DECREF(((Probe *)self)->log);
  type->tp_free(self);
  Py_DECREF(type);
}

PyObject *log_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
  if (PyTuple_GET_SIZE(arguments) != 0 || keywords != nullptr) {
    PyErr_SetString(PyExc_TypeError, "Log: expected no arguments");
    return nullptr;
  }
  Log *log = (Log *)type->tp_alloc(type, 0);
  if (log == nullptr) return nullptr;
  new (&log->seen) std::vector<uint8_t>();
  new (&log->order) std::vector<uint32_t>();
  return (PyObject *)log;
}

void log_free(PyObject *self) {
  PyTypeObject *type = Py_TYPE(self);
  ((Log *)self)->seen.~vector();
  ((Log *)self)->order.~vector();
  type->tp_free(self);
  Py_DECREF(type);
}

/* The number of an arc in a Python int; false with an exception set where it is none. */
bool read_arc(PyObject *number, uint32_t *arc) {
  Py_ssize_t value = PyNumber_AsSsize_t(number, PyExc_ValueError);
  if (value == -1 && PyErr_Occurred() != nullptr) return false;
  if (value < 0 || value >= (Py_ssize_t)1 << 28) {
    PyErr_Format(PyExc_ValueError, "arc: found %zd, expected 0 to %zd", value, ((Py_ssize_t)1 << 28) - 1);
    return false;
  }
  *arc = (uint32_t)value;
  return true;
}

PyObject *log_probe(PyObject *self, PyObject *number) {
  uint32_t arc;
  if (!read_arc(number, &arc)) return nullptr;
  Probe *probe = (Probe *)probe_type->tp_alloc(probe_type, 0);
  if (probe == nullptr) return nullptr;
  Py_INCREF(self);
  probe->log = (Log *)self;
  probe->arc = arc;
  return (PyObject *)probe;
}

PyObject *log_note(PyObject *self, PyObject *number) {
  uint32_t arc;
  if (!read_arc(number, &arc) || !note((Log *)self, arc)) return nullptr;
  Py_RETURN_NONE;
}

PyObject *log_record(PyObject *self, PyObject *) {
  ((Log *)self)->recording = true;
  ((Log *)self)->thread = PyThread_get_thread_ident();
  Py_RETURN_NONE;
}

PyObject *log_pause(PyObject *self, PyObject *) {
  ((Log *)self)->recording = false;
  Py_RETURN_NONE;
}

PyObject *log_since(PyObject *self, PyObject *mark) {
  Py_ssize_t size = (Py_ssize_t)((Log *)self)->order.size(), first = PyNumber_AsSsize_t(mark, PyExc_ValueError);
  if (first == -1 && PyErr_Occurred() != nullptr) return nullptr;
  if (first < 0 || first > size) return PyErr_Format(PyExc_ValueError, "mark: found %zd, expected 0 to %zd", first, size);
  PyObject *list = PyList_New(size - first);
  for (Py_ssize_t place = first; list != nullptr && place < size; place++) {
    PyObject *arc = PyLong_FromUnsignedLong(((Log *)self)->order[(size_t)place]);
    if (arc == nullptr) {
      Py_DECREF(list);
      return nullptr;
    }
    PyList_SET_ITEM(list, place - first, arc);
  }
  return list;
}

Py_ssize_t log_length(PyObject *self) { return (Py_ssize_t)((Log *)self)->order.size(); }

PyMethodDef log_methods[] = {
    {"probe", log_probe, METH_O, "A new probe that notes this arc here."},
    {"note", log_note, METH_O, "Notes an arc, recording or not."},
    {"record", log_record, METH_NOARGS, "Lets probes note their arcs when this thread runs them."},
    {"pause", log_pause, METH_NOARGS, "Lets probes do nothing."},
    {"since", log_since, METH_O, "The arcs in the order in which they were first seen, without the first `mark` ones."},
    {nullptr, nullptr, 0, nullptr}};

PyMethodDef probe_methods[] = {
    {"place", probe_place, METH_VARARGS, "place(code, unit, skipped): the NOP of this probe, and how many units follow that belong to it."},
    {nullptr, nullptr, 0, nullptr}};

PyType_Slot log_slots[] = {{Py_tp_new, (void *)log_new},
                           {Py_tp_dealloc, (void *)log_free},
                           {Py_tp_methods, log_methods},
                           {Py_sq_length, (void *)log_length},
                           {Py_tp_doc, (void *)"The numbers of the arcs that were seen; its length is how many."},
                           {0, nullptr}};

PyType_Slot probe_slots[] = {{Py_tp_dealloc, (void *)probe_free},
                             {Py_tp_methods, probe_methods},
                             {Py_nb_positive, (void *)probe_run},
                             {Py_tp_doc, (void *)"Notes its arc when it is run, and takes itself out of the code."},
                             {0, nullptr}};

PyType_Spec log_spec = {"tilewright.fuzz._coverage.Log", sizeof(Log), 0, Py_TPFLAGS_DEFAULT, log_slots};
PyType_Spec probe_spec = {"tilewright.fuzz._coverage.Probe", sizeof(Probe), 0,
                          Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, probe_slots};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "_coverage", "Probes that note which branches of Python code ran.", -1,
                      nullptr, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__coverage() {
  PyObject *made = PyModule_Create(&module);
  if (made == nullptr) return nullptr;
  log_type = (PyTypeObject *)PyType_FromSpec(&log_spec);
  probe_type = (PyTypeObject *)PyType_FromSpec(&probe_spec);
  if (log_type == nullptr || probe_type == nullptr || PyModule_AddType(made, log_type) < 0 || PyModule_AddType(made, probe_type) < 0) {
    Py_DECREF(made);
    return nullptr;
  }
  return made;
}
