"""A saved machine's file, taken apart and put together again: docs/state.md, independently of the program."""
import json
import struct

HEAD = struct.Struct('<8sIIQQII')
SECTION = struct.Struct('<IIII')
FIELD = struct.Struct('<BBHI')
INDEX = struct.Struct('<QII')
TAIL = struct.Struct('<QQII8s')

TABLE = []
for i in range(256):
    for _ in range(8):
        i = i >> 1 ^ (0x82f63b78 if i & 1 else 0)
    TABLE.append(i)


def crc32c(data, crc=0):
    crc ^= 0xffffffff
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 255]
    return crc ^ 0xffffffff


class Field:
    def __init__(self, kind, name, value):
        self.kind, self.name, self.value = kind, name, value

    def encode(self):
        return FIELD.pack(self.kind, len(self.name), 0, len(self.value)) + self.name + self.value


class Section:
    def __init__(self, name, version, fields):
        self.name, self.version, self.fields = name, version, fields

    def encode(self):
        payload = b''.join(field.encode() for field in self.fields)
        data = SECTION.pack(0x53444e46, self.version, len(self.name), len(payload)) + self.name + payload
        return data + struct.pack('<I', crc32c(data))

    def field(self, name):
        return next(field for field in self.fields if field.name == name)


class SavedFile:
    def __init__(self, data):
        magic, self.version, config_len, sections_len, self.ram_bytes, self.chunk_bytes, zero = HEAD.unpack_from(data)
        assert magic == b'FONDA-VM' and zero == 0
        at = HEAD.size
        self.config = json.loads(data[at:at + config_len])
        assert struct.unpack_from('<I', data, at + config_len)[0] == crc32c(data[:at + config_len])
        at += config_len + 4
        self.sections = self.parse(data[at:at + sections_len])
        at += sections_len
        index_offset, size, _, _, magic = TAIL.unpack_from(data, len(data) - TAIL.size)
        assert magic == b'FONDAEND' and size == len(data)
        self.blocks, self.index = data[at:index_offset], []
        for offset, length, crc in INDEX.iter_unpack(data[index_offset:-TAIL.size]):
            self.index.append((offset - at if length else None, length, crc))

    @staticmethod
    def parse(data):
        sections = []
        while data:
            magic, version, name_len, length = SECTION.unpack_from(data)
            assert magic == 0x53444e46
            at = SECTION.size + name_len
            name, payload = data[SECTION.size:at], data[at:at + length]
            assert struct.unpack_from('<I', data, at + length)[0] == crc32c(data[:at + length])
            fields = []
            while payload:
                kind, field_name_len, zero, field_len = FIELD.unpack_from(payload)
                assert zero == 0
                end = FIELD.size + field_name_len
                fields.append(Field(kind, payload[FIELD.size:end], payload[end:end + field_len]))
                payload = payload[end + field_len:]
            sections.append(Section(name, version, fields))
            data = data[at + length + 4:]
        return sections

    def section(self, name):
        return next(section for section in self.sections if section.name == name)

    def encode(self):
        config = json.dumps(self.config).encode()
        sections = b''.join(section.encode() for section in self.sections)
        head = HEAD.pack(b'FONDA-VM', self.version, len(config), len(sections), self.ram_bytes, self.chunk_bytes, 0) + config
        head += struct.pack('<I', crc32c(head)) + sections
        index = b''.join(INDEX.pack(len(head) + offset if length else 0, length, crc) for offset, length, crc in self.index)
        tail = struct.pack('<QQI', len(head) + len(self.blocks), len(head) + len(self.blocks) + len(index) + TAIL.size, crc32c(index))
        return head + self.blocks + index + tail + struct.pack('<I', crc32c(tail)) + b'FONDAEND'
