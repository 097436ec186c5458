#include "vm/aml.h"

#include <string.h>

/* Opcodes: ACPI 6.4, table 20.3. */
#define OP_NAME        0x08
#define OP_BYTE        0x0a
#define OP_WORD        0x0b
#define OP_DWORD       0x0c
#define OP_STRING      0x0d
#define OP_QWORD       0x0e
#define OP_SCOPE       0x10
#define OP_BUFFER      0x11
#define OP_PACKAGE     0x12
#define OP_METHOD      0x14
#define OP_EXT         0x5b
#define OP_EXT_REGION  0x80
#define OP_EXT_FIELD   0x81
#define OP_EXT_DEVICE  0x82
#define OP_LOCAL0      0x60
#define OP_ARG0        0x68
#define OP_STORE       0x70
#define OP_AND         0x7b
#define OP_NOTIFY      0x86
#define OP_IF          0xa0
#define OP_RETURN      0xa4
#define OP_MULTI_NAME  0x2f
#define SPACE_IO       0x01
#define FIELD_BYTE_ACC 0x01 /* byte access, no lock, preserve */
#define FIELD_DWORD    0x43 /* double word access, no lock, other bits are written as zeros */
#define SEG_BYTES      4u
#define SEGS_MAX       4u

#define PKG_LENGTH_BYTES 2
#define PKG_LENGTH_MAX   0xfff

static void put(struct aml *aml, const void *bytes, size_t n)
{
    if (aml->failed || n > aml->size - aml->used) {
        aml->failed = true;
        return;
    }
    memcpy(aml->buf + aml->used, bytes, n);
    aml->used += n;
}

static void put8(struct aml *aml, unsigned v)
{
    uint8_t byte = (uint8_t)v;
    put(aml, &byte, 1);
}

static void put_le(struct aml *aml, uint64_t v, unsigned bytes)
{
    put(aml, &v, bytes);
}

/* 20.2.2: "\\_SB_.PCI0.PCUP", each segment of four characters. */
static void put_path(struct aml *aml, const char *path)
{
    size_t segs = strlen(path) / (SEG_BYTES + 1);
    if (path[0] != '\\' || strlen(path) % (SEG_BYTES + 1) != 0 || segs < 2 || segs > SEGS_MAX) {
        aml->failed = true;
        return;
    }
    put8(aml, '\\');
    put8(aml, OP_MULTI_NAME);
    put8(aml, (unsigned)segs);
    for (size_t i = 0; i < segs; i++) {
        put(aml, path + 1 + i * (SEG_BYTES + 1), SEG_BYTES);
    }
}

static void put_name(struct aml *aml, const char *name)
{
    if (strchr(name, '.')) {
        put_path(aml, name);
    } else if (strcmp(name, "\\") == 0) {
        put(aml, "\\\0", 2); /* root, then a null name */
    } else if (name[0] == '\\' && strlen(name) == 5) {
        put(aml, name, 5);
    } else if (strlen(name) == 4) {
        put(aml, name, 4);
    } else {
        aml->failed = true;
    }
}

static void open_object(struct aml *aml)
{
    if (aml->depth == AML_DEPTH_MAX) {
        aml->failed = true;
        return;
    }
    aml->open[aml->depth++] = aml->used;
    put(aml, "\0\0", PKG_LENGTH_BYTES);
}

void aml_close(struct aml *aml)
{
    if (aml->failed || aml->depth == 0) {
        aml->failed = true;
        return;
    }
    size_t at = aml->open[--aml->depth];
    size_t length = aml->used - at; /* counts itself */
    if (length > PKG_LENGTH_MAX) {
        aml->failed = true;
        return;
    }
    aml->buf[at] = (uint8_t)(1 << 6 | (length & 0xf));
    aml->buf[at + 1] = (uint8_t)(length >> 4);
}

void aml_init(struct aml *aml, uint8_t *buf, size_t size)
{
    *aml = (struct aml){.buf = buf, .size = size};
}

size_t aml_finish(const struct aml *aml)
{
    return aml->failed || aml->depth != 0 ? 0 : aml->used;
}

void aml_scope(struct aml *aml, const char *name)
{
    put8(aml, OP_SCOPE);
    open_object(aml);
    put_name(aml, name);
}

void aml_device(struct aml *aml, const char *name)
{
    put8(aml, OP_EXT);
    put8(aml, OP_EXT_DEVICE);
    open_object(aml);
    put_name(aml, name);
}

void aml_method(struct aml *aml, const char *name, unsigned args)
{
    put8(aml, OP_METHOD);
    open_object(aml);
    put_name(aml, name);
    put8(aml, args & 7);
}

void aml_package(struct aml *aml, uint8_t elements)
{
    put8(aml, OP_PACKAGE);
    open_object(aml);
    put8(aml, elements);
}

void aml_name(struct aml *aml, const char *name)
{
    put8(aml, OP_NAME);
    put_name(aml, name);
}

void aml_int(struct aml *aml, uint64_t value)
{
    if (value <= 1) {
        put8(aml, (unsigned)value); /* ZeroOp, OneOp */
    } else if (value <= UINT8_MAX) {
        put8(aml, OP_BYTE);
        put_le(aml, value, 1);
    } else if (value <= UINT16_MAX) {
        put8(aml, OP_WORD);
        put_le(aml, value, 2);
    } else if (value <= UINT32_MAX) {
        put8(aml, OP_DWORD);
        put_le(aml, value, 4);
    } else {
        put8(aml, OP_QWORD);
        put_le(aml, value, 8);
    }
}

void aml_string(struct aml *aml, const char *text)
{
    put8(aml, OP_STRING);
    put(aml, text, strlen(text) + 1);
}

static unsigned hex_digit(char c)
{
    return c >= '0' && c <= '9' ? (unsigned)(c - '0') : (unsigned)(c - 'A' + 10) & 0xf;
}

/* ACPI 6.4, 19.3.4: three letters of five bits each and four hexadecimal digits, most significant byte first.
 */
void aml_eisaid(struct aml *aml, const char *id)
{
    if (strlen(id) != 7) {
        aml->failed = true;
        return;
    }
    unsigned letters = (unsigned)(id[0] - '@') << 10 | (unsigned)(id[1] - '@') << 5 | (unsigned)(id[2] - '@');
    put8(aml, OP_DWORD);
    put8(aml, letters >> 8);
    put8(aml, letters);
    put8(aml, hex_digit(id[3]) << 4 | hex_digit(id[4]));
    put8(aml, hex_digit(id[5]) << 4 | hex_digit(id[6]));
}

void aml_io_region(struct aml *aml, const char *name, uint16_t port, uint8_t bytes)
{
    put8(aml, OP_EXT);
    put8(aml, OP_EXT_REGION);
    put_name(aml, name);
    put8(aml, SPACE_IO);
    aml_int(aml, port);
    aml_int(aml, bytes);
}

void aml_byte_field(struct aml *aml, const char *region, const char *field)
{
    put8(aml, OP_EXT);
    put8(aml, OP_EXT_FIELD);
    open_object(aml);
    put_name(aml, region);
    put8(aml, FIELD_BYTE_ACC);
    put_name(aml, field);
    put8(aml, 8); /* bits, as a package length */
    aml_close(aml);
}

/* The buffer's size is a word constant that aml_resources_end fills in. */
void aml_resources_begin(struct aml *aml)
{
    put8(aml, OP_BUFFER);
    open_object(aml);
    put8(aml, OP_WORD);
    put(aml, "\0\0", 2);
}

void aml_resource_io(struct aml *aml, uint16_t port, uint8_t bytes)
{
    put8(aml, 0x47); /* 6.4.2.5 */
    put8(aml, 1);    /* 16 bits decoded */
    put_le(aml, port, 2);
    put_le(aml, port, 2);
    put8(aml, 1); /* alignment */
    put8(aml, bytes);
}

void aml_resource_irq(struct aml *aml, unsigned irq)
{
    put8(aml, 0x22); /* 6.4.2.1: edge-triggered, active high */
    put_le(aml, 1u << (irq & 15), 2);
}

void aml_resource_mem32(struct aml *aml, uint32_t base, uint32_t bytes)
{
    put8(aml, 0x86); /* 6.4.3.4: 32-bit fixed memory range */
    put_le(aml, 9, 2);
    put8(aml, 0); /* read-only */
    put_le(aml, base, 4);
    put_le(aml, bytes, 4);
}

/* Granularity, first, last, translation, length, each of `bytes` bytes. */
static void put_range(struct aml *aml, uint32_t first, uint32_t last, unsigned bytes)
{
    put_le(aml, 0, bytes);
    put_le(aml, first, bytes);
    put_le(aml, last, bytes);
    put_le(aml, 0, bytes);
    put_le(aml, last - first + 1, bytes);
}

#define RANGE_FIXED 0x0c /* minimum and maximum are fixed; produced, positively decoded */

void aml_resource_bus(struct aml *aml, uint16_t first, uint16_t last)
{
    put8(aml, 0x88); /* 6.4.3.5.3: word address space */
    put_le(aml, 13, 2);
    put8(aml, 2); /* bus numbers */
    put8(aml, RANGE_FIXED);
    put8(aml, 0);
    put_range(aml, first, last, 2);
}

void aml_resource_window32(struct aml *aml, uint32_t base, uint32_t bytes)
{
    put8(aml, 0x87); /* 6.4.3.5.2: double word address space */
    put_le(aml, 23, 2);
    put8(aml, 0); /* memory */
    put8(aml, RANGE_FIXED);
    put8(aml, 1); /* writable, not cacheable */
    put_range(aml, base, base + (bytes - 1), 4);
}

void aml_resources_end(struct aml *aml)
{
    put8(aml, 0x79); /* 6.4.2.9 */
    put8(aml, 0);    /* no checksum */
    if (aml->failed || aml->depth == 0) {
        aml->failed = true;
        return;
    }
    size_t data = aml->open[aml->depth - 1] + PKG_LENGTH_BYTES + 3;
    uint16_t bytes = (uint16_t)(aml->used - data);
    memcpy(aml->buf + data - 2, &bytes, sizeof(bytes));
    aml_close(aml);
}

void aml_return_name(struct aml *aml, const char *name)
{
    put8(aml, OP_RETURN);
    put_name(aml, name);
}

void aml_store_arg0(struct aml *aml, const char *name)
{
    put8(aml, OP_STORE);
    put8(aml, OP_ARG0);
    put_name(aml, name);
}

/* 20.2.5.2: an operation region's field is a list of names with their width in bits. */
void aml_dword_fields(struct aml *aml, const char *region, const char *const *fields, unsigned count)
{
    put8(aml, OP_EXT);
    put8(aml, OP_EXT_FIELD);
    open_object(aml);
    put_name(aml, region);
    put8(aml, FIELD_DWORD);
    for (unsigned i = 0; i < count; i++) {
        put_name(aml, fields[i]);
        put8(aml, 32);
    }
    aml_close(aml);
}

void aml_ref(struct aml *aml, const char *name)
{
    put_name(aml, name);
}

void aml_arg(struct aml *aml, unsigned n)
{
    put8(aml, OP_ARG0 + (n & 7));
}

void aml_local(struct aml *aml, unsigned n)
{
    put8(aml, OP_LOCAL0 + (n & 7));
}

void aml_store(struct aml *aml)
{
    put8(aml, OP_STORE);
}

void aml_notify(struct aml *aml)
{
    put8(aml, OP_NOTIFY);
}

void aml_if_arg0_bits(struct aml *aml, uint32_t bits)
{
    put8(aml, OP_IF);
    open_object(aml);
    put8(aml, OP_AND);
    put8(aml, OP_ARG0);
    aml_int(aml, bits);
    put8(aml, 0); /* no target: 20.2.5.4 */
}
