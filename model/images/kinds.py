"""File type detection by content, never by name: the readable image formats, and names for all others."""

from __future__ import annotations

import re
from collections.abc import Sequence

READABLE = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF")
_HEAD = 4096  # bytes used for detection

_SIGNATURES: Sequence[tuple[int, bytes, str]] = (
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (8, b"WEBP", "WEBP"),
    (0, b"II*\0\x10\0\0\0CR", "a CR2 camera raw image"),
    (0, b"II*\0", "a TIFF image"),
    (0, b"MM\0*", "a TIFF image"),
    (0, b"II+\0", "a TIFF image"),
    (0, b"MM\0+", "a TIFF image"),
    (0, b"II\xbc\x01", "a JPEG XR image"),
    (0, b"IIRO", "an ORF camera raw image"),
    (0, b"IIU\0", "an RW2 camera raw image"),
    (0, b"FUJIFILMCCD-RAW", "a RAF camera raw image"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (0, b"\0\0\1\0", "an ICO icon"),
    (0, b"\0\0\2\0", "a CUR cursor"),
    (0, b"icns", "an ICNS icon"),
    (0, b"8BPS", "a Photoshop (PSD) file"),
    (0, b"gimp xcf", "a GIMP (XCF) file"),
    (0, b"%!PS", "an EPS or PostScript file"),
    (0, b"\xc5\xd0\xd3\xc6", "an EPS file"),
    (0, b"%PDF-", "a PDF document"),
    (0, b"#?RADIANCE", "a Radiance HDR image"),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR image"),
    (0, b"DDS ", "a DDS texture"),
    (0, b"qoif", "a QOI image"),
    (0, b"farbfeld", "a farbfeld image"),
    (0, b"BPG\xfb", "a BPG image"),
    (0, b"FLIF", "a FLIF image"),
    (0, b"\xd7\xcd\xc6\x9a", "a WMF drawing"),
    (40, b" EMF", "an EMF drawing"),
    (128, b"DICM", "a DICOM image"),
    (0, b"SIMPLE  =", "a FITS image"),
    (0, b"\x01\xda", "an SGI image"),
    (0, b"\x59\xa6\x6a\x95", "a Sun raster image"),
    (0, b"/* XPM */", "an XPM image"),
    (0, b"AT&TFORM", "a DjVu document"),
    (8, b"AVI ", "a video (AVI)"),
    (8, b"WAVE", "an audio file (WAV)"),
    (0, b"\x1aE\xdf\xa3", "a video (Matroska or WebM)"),
    (0, b"\0\0\1\xba", "a video (MPEG)"),
    (0, b"\0\0\1\xb3", "a video (MPEG)"),
    (0, b"FLV\1", "a video (Flash)"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "a video (Windows Media)"),
    (4, b"moov", "a video (QuickTime)"),
    (4, b"mdat", "a video (QuickTime)"),
    (0, b"OggS", "an Ogg audio or video file"),
    (0, b"ID3", "an audio file (MP3)"),
    (0, b"fLaC", "an audio file (FLAC)"),
    (0, b"PK\3\4", "a ZIP archive or an office document"),
    (0, b"PK\5\6", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ\0", "an xz archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!\x1a\x07", "a RAR archive"),
    (0, b"(\xb5/\xfd", "a Zstandard archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\xd0\xcf\x11\xe0", "an office document"),
    (0, b"{\\rtf", "an RTF document"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"ARROW1", "an Arrow file"),
    (0, b"SQLite format 3", "a SQLite database"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x7fELF", "a program"),
    (0, b"MZ", "a Windows program"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
)
_BRANDS = {  # of ISO base media files
    b"avif": "AVIF",
    b"avis": "AVIF",
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), "a HEIC image"),
    b"crx ": "a CR3 camera raw image",
    b"qt  ": "a video (QuickTime)",
    **dict.fromkeys((b"M4A ", b"M4B "), "an audio file (M4A)"),
    **dict.fromkeys((b"mif1", b"msf1", b"mif2"), "a HEIF image"),
}
_PROLOGUE = re.compile(rb"\s*(?:<\?.*?\?>|<!--.*?-->|<!doctype\s+svg[^>\[]*(?:\[.*?\])?[^>]*>|\s)*", re.S | re.I)
_SVG = re.compile(rb"<(?:\w+:)?svg\b", re.I)
_HTML = re.compile(rb"<(?:!doctype\s+html|html|head|body|title|script|meta|div|p|h1|table|a)\b", re.I)
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{40,}={0,2}\s*")
_PNM = re.compile(rb"P[1-7f]\s")


def kind_of(data: bytes) -> str:
    """One of `READABLE`, or a description of the file such as ``"a HEIC image"`` or ``"an HTML page"``."""
    head = data[:_HEAD]
    if not head:
        return "an empty file"
    if head[4:8] == b"ftyp":
        return _of_brands(head)
    for offset, signature, kind in _SIGNATURES:
        if head.startswith(signature, offset):
            return kind
    if head.startswith(b"BM") and len(head) > 18 and head[15:18] == b"\0\0\0":  # header size, below 256
        return "BMP"
    if head[0] == 0xFF and len(head) > 1 and head[1] & 0xE0 == 0xE0:
        return "an audio file (MP3)"
    return _of_text(head)


def _of_brands(head: bytes) -> str:
    """The first known brand: the major one, unless it only names the container."""
    size = min(int.from_bytes(head[:4], "big"), len(head))
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, size - 3, 4))]
    generic = [kind for brand in brands if (kind := _BRANDS.get(brand))]
    return next((kind for kind in generic if kind != "a HEIF image"), generic[0] if generic else "a video (MP4)")


def _of_text(head: bytes) -> str:
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        if head.startswith(mark):
            head = head[len(mark) :].decode(encoding, "ignore").encode()
    if _PNM.match(head):
        return "a Netpbm (PNM) image"
    text = head[_PROLOGUE.match(head).end() :]  # type: ignore[union-attr]
    if _SVG.match(text):
        return "an SVG drawing"
    if _HTML.match(text):
        return "an HTML page"
    if text.startswith(b"<") or head.lstrip().startswith(b"<?xml"):
        return "an SVG drawing" if _SVG.search(head) else "an XML document"
    if any(byte < 9 or (13 < byte < 32 and byte != 27) for byte in head):
        return "not a known image format"
    if head.lstrip()[:1] in (b"{", b"["):
        return "a JSON document"
    if head.lstrip()[:5].lower() == b"data:":
        return "a data URL as text, not the image itself"
    if _BASE64.fullmatch(head) or (_BASE64.match(head) and len(head.split(None, 1)[0]) > 60):
        return "base64 text, not the image itself"
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return "not a known image format"
    return "a text file"
