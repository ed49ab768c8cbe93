/* Loader of relocatable ELF objects; see elf_loader.h.
 *
 * The image is one reservation, so that relative references always reach:
 *     code sections | stubs (jumps to externals)  ||  read-only sections | offset table
 *            read + execute                       ||         read
 * An external may be further away than a 32-bit displacement: calls go through a stub, loads through the offset table.
 */
#include "elf_loader.h"

#include <elf.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__x86_64__)
static const int own_machine = EM_X86_64;
static const char *const own_machine_name = "x86-64";
#else
static const int own_machine = -1; /* relocations of other machines are not implemented: everything is refused */
static const char *const own_machine_name = "none on this machine (use a shared library)";
#endif

struct tw_code {
  uint8_t *image;
  size_t image_bytes;
  size_t code_bytes; /* the executable part in front, whole pages */
  /* what symbol lookup needs */
  char *names;
  struct named {
    const char *name;
    uint8_t *address;
    size_t bytes;
  } *symbols;
  size_t symbol_count;
};

namespace {

const uint64_t largest_image = uint64_t(1) << 30; /* relative references reach 2 GB */
const size_t stub_bytes = 16;

struct loader {
  const uint8_t *object;
  size_t bytes;
  const tw_external *externals;
  size_t external_count;
  char *error;
  size_t error_capacity;
  tw_code *code;
  const Elf64_Shdr *sections;
  size_t section_count;
  const char *section_names;
  size_t section_names_bytes;
  const Elf64_Sym *symbols;
  size_t symbol_count;
  const char *names;
  size_t names_bytes;
  uint8_t **places;      /* of every section in the image, null when it is not loaded */
  uint8_t **slots;       /* of every symbol in the offset table, null until asked for */
  uint8_t **stubs;       /* of every symbol */
  uint8_t *next_stub, *next_slot; /* places left: one stub an undefined symbol, one slot a symbol */
};

__attribute__((format(printf, 2, 3))) bool refuse(loader *self, const char *format, ...) {
  if (self->error != nullptr && self->error_capacity > 0) {
    va_list arguments;
    va_start(arguments, format);
    int used = snprintf(self->error, self->error_capacity, "object code: ");
    if (used > 0 && (size_t)used < self->error_capacity)
      vsnprintf(self->error + used, self->error_capacity - (size_t)used, format, arguments);
    va_end(arguments);
  }
  return false;
}

bool inside(uint64_t offset, uint64_t size, uint64_t whole) { return offset <= whole && size <= whole - offset; }

const char *section_name(const loader *self, size_t index) {
  uint32_t offset = self->sections[index].sh_name;
  if (self->section_names == nullptr || offset >= self->section_names_bytes) return "?";
  return self->section_names + offset; /* the table was checked to end in a null */
}

const char *symbol_name(const loader *self, const Elf64_Sym *symbol) {
  if (symbol->st_name >= self->names_bytes) return "?";
  return self->names[symbol->st_name] == 0 ? "a section" : self->names + symbol->st_name; /* section symbols have no name */
}

bool parse_header(loader *self) {
  if (self->bytes < sizeof(Elf64_Ehdr)) return refuse(self, "%zu bytes are too few for an ELF header: truncated", self->bytes);
  const Elf64_Ehdr *header = (const Elf64_Ehdr *)self->object;
  if (memcmp(header->e_ident, ELFMAG, SELFMAG) != 0) return refuse(self, "not an ELF file");
  if (header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_ident[EI_DATA] != ELFDATA2LSB)
    return refuse(self, "not a 64-bit little-endian ELF file");
  if (header->e_machine != own_machine) return refuse(self, "found code for ELF machine %d, expected %s", header->e_machine, own_machine_name);
  if (header->e_type != ET_REL) return refuse(self, "found ELF type %d, expected a relocatable object", header->e_type);
  if (header->e_shentsize != sizeof(Elf64_Shdr) || header->e_shoff % 8 != 0 ||
      !inside(header->e_shoff, (uint64_t)header->e_shnum * sizeof(Elf64_Shdr), self->bytes) || header->e_shnum == 0)
    return refuse(self, "its section table lies outside the file: truncated or damaged");
  self->sections = (const Elf64_Shdr *)(self->object + header->e_shoff);
  self->section_count = header->e_shnum;
  for (size_t index = 0; index < self->section_count; index++) {
    const Elf64_Shdr *section = &self->sections[index];
    if (section->sh_type != SHT_NOBITS && section->sh_type != SHT_NULL && !inside(section->sh_offset, section->sh_size, self->bytes))
      return refuse(self, "section %zu lies outside the file: truncated or damaged", index);
  }
  if (header->e_shstrndx < self->section_count) {
    const Elf64_Shdr *names = &self->sections[header->e_shstrndx];
    if (names->sh_type == SHT_STRTAB && names->sh_size > 0 && self->object[names->sh_offset + names->sh_size - 1] == 0) {
      self->section_names = (const char *)self->object + names->sh_offset;
      self->section_names_bytes = names->sh_size;
    }
  }
  return true;
}

bool parse_symbols(loader *self) {
  const Elf64_Shdr *table = nullptr;
  for (size_t index = 0; index < self->section_count; index++)
    if (self->sections[index].sh_type == SHT_SYMTAB) table = &self->sections[index];
  if (table == nullptr) return refuse(self, "it has no symbol table");
  if (table->sh_entsize != sizeof(Elf64_Sym) || table->sh_size % sizeof(Elf64_Sym) != 0 || table->sh_offset % 8 != 0 ||
      table->sh_link >= self->section_count)
    return refuse(self, "its symbol table is damaged");
  const Elf64_Shdr *names = &self->sections[table->sh_link];
  if (names->sh_type != SHT_STRTAB || names->sh_size == 0 || self->object[names->sh_offset + names->sh_size - 1] != 0)
    return refuse(self, "its table of symbol names is damaged");
  self->symbols = (const Elf64_Sym *)(self->object + table->sh_offset);
  self->symbol_count = table->sh_size / sizeof(Elf64_Sym);
  self->names = (const char *)self->object + names->sh_offset;
  self->names_bytes = names->sh_size;
  return true;
}

/* Sections that go into the image: allocated ones, but no unwind tables (nothing unwinds through generated code). */
bool is_loaded(const loader *self, size_t index) {
  const Elf64_Shdr *section = &self->sections[index];
  if ((section->sh_flags & SHF_ALLOC) == 0 || section->sh_size == 0) return false;
  if (section->sh_type == SHT_X86_64_UNWIND || section->sh_type == SHT_NOTE) return false;
  return strcmp(section_name(self, index), ".eh_frame") != 0;
}

bool check_section(loader *self, size_t index) {
  const Elf64_Shdr *section = &self->sections[index];
  const char *name = section_name(self, index);
  if (section->sh_flags & SHF_TLS) return refuse(self, "section %s is thread-local, which is not supported", name);
  if (section->sh_type == SHT_INIT_ARRAY || section->sh_type == SHT_FINI_ARRAY || section->sh_type == SHT_PREINIT_ARRAY)
    return refuse(self, "section %s holds constructors, which are not supported", name);
  if (section->sh_type != SHT_PROGBITS && section->sh_type != SHT_NOBITS)
    return refuse(self, "section %s has unsupported type %u", name, section->sh_type);
  if ((section->sh_flags & SHF_WRITE) && strncmp(name, ".data.rel.ro", 12) != 0)
    return refuse(self, "section %s is writable: generated code must have no mutable globals", name);
  if (section->sh_addralign > 4096 || (section->sh_addralign & (section->sh_addralign - 1)) != 0)
    return refuse(self, "section %s has alignment %llu, supported are powers of two up to 4096", name, (unsigned long long)section->sh_addralign);
  if (section->sh_size > largest_image) return refuse(self, "section %s is larger than 1 GB", name);
  return true;
}

uint64_t align_up(uint64_t value, uint64_t alignment) { return alignment <= 1 ? value : (value + alignment - 1) & ~(alignment - 1); }

/* Lays out either the executable or the other sections from *offset on; places hold offsets until the image exists. */
bool lay_out(loader *self, bool executable, uint64_t *offset, uint64_t *starts) {
  for (size_t index = 0; index < self->section_count; index++) {
    if (!is_loaded(self, index) || ((self->sections[index].sh_flags & SHF_EXECINSTR) != 0) != executable) continue;
    if (!check_section(self, index)) return false;
    *offset = align_up(*offset, self->sections[index].sh_addralign);
    starts[index] = *offset;
    *offset += self->sections[index].sh_size;
    if (*offset > largest_image) return refuse(self, "it is larger than 1 GB");
  }
  return true;
}

bool map_image(loader *self, uint64_t *starts) {
  uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), offset = 0;
  if (page < 4096) page = 4096;
  size_t undefined = 0;
  for (size_t index = 1; index < self->symbol_count; index++) undefined += self->symbols[index].st_shndx == SHN_UNDEF;
  if (!lay_out(self, true, &offset, starts)) return false;
  offset = align_up(offset, stub_bytes);
  uint64_t stub_start = offset;
  uint64_t code_bytes = align_up(offset + undefined * stub_bytes, page);
  offset = code_bytes;
  if (!lay_out(self, false, &offset, starts)) return false;
  offset = align_up(offset, 8);
  uint64_t slot_start = offset, total = align_up(offset + self->symbol_count * 8, page);
  if (total > largest_image) return refuse(self, "it is larger than 1 GB");
  void *image = mmap(nullptr, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (image == MAP_FAILED) return refuse(self, "no memory for %llu bytes", (unsigned long long)total);
  self->code->image = (uint8_t *)image;
  self->code->image_bytes = total;
  self->code->code_bytes = code_bytes;
  self->next_stub = (uint8_t *)image + stub_start;
  self->next_slot = (uint8_t *)image + slot_start;
  for (size_t index = 0; index < self->section_count; index++) {
    if (!is_loaded(self, index)) continue;
    const Elf64_Shdr *section = &self->sections[index];
    self->places[index] = (uint8_t *)image + starts[index];
    if (section->sh_type != SHT_NOBITS) memcpy(self->places[index], self->object + section->sh_offset, section->sh_size);
  }
  return true;
}

/* The address of a symbol: of one that is defined here, or of the external of that name. */
bool resolve(loader *self, uint64_t index, uint64_t *address, bool *external) {
  *external = false;
  if (index >= self->symbol_count) return refuse(self, "a relocation refers to symbol %llu of %zu: damaged", (unsigned long long)index, self->symbol_count);
  const Elf64_Sym *symbol = &self->symbols[index];
  const char *name = symbol_name(self, symbol);
  if (index == 0) {
    *address = 0;
    return true;
  }
  if (symbol->st_shndx == SHN_ABS) {
    *address = symbol->st_value;
    return true;
  }
  if (symbol->st_shndx == SHN_UNDEF) {
    if (strcmp(name, "_GLOBAL_OFFSET_TABLE_") == 0) { /* code measures from it and never reads it */
      *address = (uint64_t)(uintptr_t)self->code->image;
      return true;
    }
    *external = true;
    for (size_t entry = 0; entry < self->external_count; entry++)
      if (strcmp(self->externals[entry].name, name) == 0) {
        *address = (uint64_t)(uintptr_t)self->externals[entry].address;
        return true;
      }
    return refuse(self, "it refers to '%s', which the runtime does not provide", name);
  }
  if (symbol->st_shndx >= self->section_count || self->places[symbol->st_shndx] == nullptr)
    return refuse(self, "symbol '%s' lies in section %u, which is not loaded", name, symbol->st_shndx);
  if (symbol->st_value > self->sections[symbol->st_shndx].sh_size) return refuse(self, "symbol '%s' lies outside its section: damaged", name);
  *address = (uint64_t)(uintptr_t)self->places[symbol->st_shndx] + symbol->st_value;
  return true;
}

/* The symbol's entry in the offset table. */
uint64_t slot_of(loader *self, uint64_t index, uint64_t address) {
  if (self->slots[index] == nullptr) {
    self->slots[index] = self->next_slot;
    memcpy(self->next_slot, &address, 8);
    self->next_slot += 8;
  }
  return (uint64_t)(uintptr_t)self->slots[index];
}

/* A jump to an external through its entry in the offset table: jmp *displacement(%rip). */
uint64_t stub_of(loader *self, uint64_t index, uint64_t address) {
  if (self->stubs[index] == nullptr) {
    uint8_t *stub = self->next_stub;
    int32_t displacement = (int32_t)(slot_of(self, index, address) - (uint64_t)(uintptr_t)(stub + 6));
    stub[0] = 0xff, stub[1] = 0x25;
    memcpy(stub + 2, &displacement, 4);
    memset(stub + 6, 0xcc, stub_bytes - 6);
    self->stubs[index] = stub;
    self->next_stub += stub_bytes;
  }
  return (uint64_t)(uintptr_t)self->stubs[index];
}

#if defined(__x86_64__)

int relocation_width(uint32_t type) {
  switch (type) {
    case R_X86_64_64: case R_X86_64_PC64: case R_X86_64_GOTOFF64: case R_X86_64_GOTPC64: case R_X86_64_PLTOFF64:
    case R_X86_64_GOT64: return 8;
    case R_X86_64_PC32: case R_X86_64_PLT32: case R_X86_64_32: case R_X86_64_32S: case R_X86_64_GOTPCREL:
    case R_X86_64_GOTPCRELX: case R_X86_64_REX_GOTPCRELX: case R_X86_64_GOTPC32: return 4;
    default: return 0;
  }
}

/* Writes one relocation. S, A, P as in the psABI: symbol, addend, place; `base` is the offset table's address. */
bool relocate(loader *self, const Elf64_Rela *entry, uint8_t *place, const char *section) {
  uint32_t type = (uint32_t)ELF64_R_TYPE(entry->r_info);
  uint64_t index = ELF64_R_SYM(entry->r_info), address = 0;
  bool external = false;
  if (!resolve(self, index, &address, &external)) return false;
  uint64_t addend = (uint64_t)entry->r_addend, at = (uint64_t)(uintptr_t)place, value = 0;
  uint64_t base = (uint64_t)(uintptr_t)self->code->image; /* what code of the large model measures from */
  switch (type) {
    case R_X86_64_64: case R_X86_64_32: case R_X86_64_32S: value = address + addend; break;
    case R_X86_64_PC64: value = address + addend - at; break;
    case R_X86_64_PC32: case R_X86_64_PLT32: value = (external ? stub_of(self, index, address) : address) + addend - at; break;
    case R_X86_64_GOTPCREL: case R_X86_64_GOTPCRELX: case R_X86_64_REX_GOTPCRELX: value = slot_of(self, index, address) + addend - at; break;
    case R_X86_64_GOT64: value = slot_of(self, index, address) + addend - base; break;
    case R_X86_64_GOTOFF64: case R_X86_64_PLTOFF64: value = address + addend - base; break;
    case R_X86_64_GOTPC32: case R_X86_64_GOTPC64: value = base + addend - at; break;
    default: return refuse(self, "unsupported relocation type %u in section %s", type, section);
  }
  bool fits = relocation_width(type) == 8 ||
              (type == R_X86_64_32 ? value == (uint32_t)value : value == (uint64_t)(int64_t)(int32_t)value);
  if (!fits)
    return refuse(self, "relocation type %u in section %s does not reach '%s': compile as position-independent code", type, section,
                  symbol_name(self, &self->symbols[index]));
  memcpy(place, &value, (size_t)relocation_width(type));
  return true;
}

#else

int relocation_width(uint32_t) { return 0; }
bool relocate(loader *self, const Elf64_Rela *, uint8_t *, const char *) { return refuse(self, "unsupported machine"); }

#endif

bool apply_relocations(loader *self) {
  for (size_t index = 0; index < self->section_count; index++) {
    const Elf64_Shdr *section = &self->sections[index];
    if (section->sh_type != SHT_REL && section->sh_type != SHT_RELA) continue;
    if (section->sh_info >= self->section_count) return refuse(self, "relocations of section %u of %zu: damaged", section->sh_info, self->section_count);
    uint8_t *target = self->places[section->sh_info];
    if (target == nullptr) continue;
    const char *name = section_name(self, section->sh_info);
    if (section->sh_type == SHT_REL || section->sh_entsize != sizeof(Elf64_Rela) || section->sh_size % sizeof(Elf64_Rela) != 0 ||
        section->sh_offset % 8 != 0)
      return refuse(self, "the relocations of section %s are damaged", name);
    const Elf64_Rela *entries = (const Elf64_Rela *)(self->object + section->sh_offset);
    for (size_t number = 0; number < section->sh_size / sizeof(Elf64_Rela); number++) {
      uint32_t type = (uint32_t)ELF64_R_TYPE(entries[number].r_info);
      if (type == 0) continue;
      int width = relocation_width(type);
      if (width == 0) return refuse(self, "unsupported relocation type %u in section %s", type, name);
      if (!inside(entries[number].r_offset, (uint64_t)width, self->sections[section->sh_info].sh_size))
        return refuse(self, "a relocation lies outside section %s: damaged", name);
      if (!relocate(self, &entries[number], target + entries[number].r_offset, name)) return false;
    }
  }
  return true;
}

bool keep_symbols(loader *self) {
  tw_code *code = self->code;
  code->names = (char *)malloc(self->names_bytes);
  code->symbols = (tw_code::named *)calloc(self->symbol_count + 1, sizeof *code->symbols);
  if (code->names == nullptr || code->symbols == nullptr) return refuse(self, "no memory");
  memcpy(code->names, self->names, self->names_bytes);
  for (size_t index = 1; index < self->symbol_count; index++) {
    const Elf64_Sym *symbol = &self->symbols[index];
    if (ELF64_ST_BIND(symbol->st_info) == STB_LOCAL || symbol->st_shndx >= self->section_count ||
        self->places[symbol->st_shndx] == nullptr || symbol->st_name >= self->names_bytes ||
        symbol->st_value > self->sections[symbol->st_shndx].sh_size)
      continue;
    tw_code::named *entry = &code->symbols[code->symbol_count++];
    entry->name = code->names + symbol->st_name;
    entry->address = self->places[symbol->st_shndx] + symbol->st_value;
    entry->bytes = self->sections[symbol->st_shndx].sh_size - symbol->st_value;
  }
  return true;
}

bool protect(loader *self) {
  tw_code *code = self->code;
  if (code->code_bytes > 0 && mprotect(code->image, code->code_bytes, PROT_READ | PROT_EXEC) != 0)
    return refuse(self, "the system does not allow executable memory (SELinux or a sandbox); save the model as a shared library and load that");
  if (code->image_bytes > code->code_bytes &&
      mprotect(code->image + code->code_bytes, code->image_bytes - code->code_bytes, PROT_READ) != 0)
    return refuse(self, "memory could not be made read only");
  return true;
}

/* `scratch` holds places, slots, stubs and starts of every section or symbol. */
bool load_all(loader *self) {
  if (!parse_header(self) || !parse_symbols(self)) return false;
  size_t entries = 2 * self->section_count + 2 * self->symbol_count;
  uint8_t **scratch = (uint8_t **)calloc(entries, sizeof(uint8_t *));
  if (scratch == nullptr) return refuse(self, "no memory");
  self->places = scratch;
  self->slots = scratch + self->section_count;
  self->stubs = self->slots + self->symbol_count;
  uint64_t *starts = (uint64_t *)(self->stubs + self->symbol_count);
  bool loaded = map_image(self, starts) && apply_relocations(self) && keep_symbols(self) && protect(self);
  free(scratch);
  return loaded;
}

}  // namespace

extern "C" tw_code *tw_code_load(const uint8_t *object, size_t bytes, const tw_external *externals, size_t external_count, char *error,
                                 size_t error_capacity) {
  loader self;
  memset(&self, 0, sizeof self);
  self.bytes = bytes;
  self.externals = externals;
  self.external_count = external_count;
  self.error = error;
  self.error_capacity = error_capacity;
  /* A copy, aligned for the structures in it; the caller's bytes may start anywhere. */
  void *aligned = nullptr;
  if (posix_memalign(&aligned, 64, bytes + 1) != 0 || (self.code = (tw_code *)calloc(1, sizeof(tw_code))) == nullptr) {
    free(aligned);
    refuse(&self, "no memory");
    return nullptr;
  }
  memcpy(aligned, object, bytes);
  self.object = (const uint8_t *)aligned;
  bool loaded = load_all(&self);
  free(aligned);
  if (loaded) return self.code;
  tw_code_free(self.code);
  return nullptr;
}

extern "C" const void *tw_code_symbol(const tw_code *code, const char *name, size_t *bytes) {
  for (size_t index = 0; index < code->symbol_count; index++)
    if (strcmp(code->symbols[index].name, name) == 0) {
      if (bytes != nullptr) *bytes = code->symbols[index].bytes;
      return code->symbols[index].address;
    }
  return nullptr;
}

extern "C" int32_t tw_code_contains(const tw_code *code, const void *address, size_t bytes) {
  uintptr_t start = (uintptr_t)code->image, place = (uintptr_t)address;
  return place >= start && place - start <= code->image_bytes && bytes <= code->image_bytes - (place - start);
}

extern "C" size_t tw_code_bytes(const tw_code *code) { return code->image_bytes; }

extern "C" void tw_code_free(tw_code *code) {
  if (code == nullptr) return;
  if (code->image != nullptr) munmap(code->image, code->image_bytes);
  free(code->symbols);
  free(code->names);
  free(code);
}
