/* JPEG files to RGB pixels through libjpeg-turbo, with the decoder's defaults (accurate integer
 * DCT, fancy upsampling), which are Pillow's too.
 *
 * libjpeg reports an error by calling error_exit, which may not return: it jumps back to the
 * setjmp in the function that called the decoder. Between setjmp and the end of the call nothing
 * but the struct behind a pointer is changed, so no local can be clobbered. A warning that means
 * lost or wrong pixels (the file ends early, a bad Huffman code) is an error here: libjpeg would
 * go on with grey. */
#include "image/image.h"

#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

#include "core/status.h"

/* No encoder writes more; a file of millions of empty scans would keep a thread for hours. */
#define MAX_SCANS 500
#define ROWS_AT_ONCE 16

typedef struct {
    struct jpeg_decompress_struct info;
    struct jpeg_error_mgr errors;
    struct jpeg_progress_mgr progress;
    jmp_buf escape;
    int status;
} decoder;

static void fail_and_escape(j_common_ptr info)
{
    decoder *d = info->client_data;
    char text[JMSG_LENGTH_MAX];
    info->err->format_message(info, text);
    switch (info->err->msg_code) {
    case JERR_OUT_OF_MEMORY:
        d->status = asen_fail(ASEN_ERR_MEMORY, "out of memory while decoding a JPEG file");
        break;
    case JERR_SOF_UNSUPPORTED:
    case JERR_BAD_PRECISION:
    case JERR_ARITH_NOTIMPL:
    case JERR_CONVERSION_NOTIMPL:
    case JERR_NOT_COMPILED:
        d->status = asen_fail(ASEN_ERR_UNSUPPORTED, "JPEG: %s", text);
        break;
    default:
        d->status = asen_fail(ASEN_ERR_IO, "broken JPEG file: %s", text);
    }
    longjmp(d->escape, 1);
}

/* level -1 is a warning, 0 and above are chatter. */
static void judge_message(j_common_ptr info, int level)
{
    if (level >= 0)
        return;
    switch (info->err->msg_code) {
    case JWRN_JPEG_EOF:
    case JWRN_HIT_MARKER:
    case JWRN_HUFF_BAD_CODE:
    case JWRN_MUST_RESYNC:
    case JWRN_ARITH_BAD_CODE:
    case JWRN_BOGUS_PROGRESSION:
        fail_and_escape(info);
        break;
    default: /* odd, but no pixel is wrong */
        info->err->num_warnings++;
    }
}

static void say_nothing(j_common_ptr info)
{
    (void)info;
}

static void watch_scans(j_common_ptr info)
{
    decoder *d = info->client_data;
    if (d->info.input_scan_number > MAX_SCANS) {
        d->status = asen_fail(ASEN_ERR_IO, "broken JPEG file: more than %d scans", MAX_SCANS);
        longjmp(d->escape, 1);
    }
}

/* Everything up to the header. Runs under the caller's setjmp; *d is zeroed. */
static void open_header(decoder *d, const uint8_t *data, size_t n)
{
    jpeg_create_decompress(&d->info);
    d->info.progress = &d->progress;
    d->progress.progress_monitor = watch_scans;
    jpeg_mem_src(&d->info, (unsigned char *)data, (unsigned long)n);
    jpeg_read_header(&d->info, TRUE);
}

static void decoder_init(decoder *d)
{
    memset(d, 0, sizeof *d);
    d->info.err = jpeg_std_error(&d->errors);
    d->info.client_data = d;
    d->errors.error_exit = fail_and_escape;
    d->errors.emit_message = judge_message;
    d->errors.output_message = say_nothing;
}

static int check_header(const decoder *d)
{
    int64_t height = d->info.image_height, width = d->info.image_width;
    if (height < 1 || width < 1 || height > ASEN_IMAGE_MAX_PIXELS / width)
        return asen_fail(ASEN_ERR_IO, "JPEG file of %lld x %lld pixels: more than %lld are refused",
                         (long long)width, (long long)height, (long long)ASEN_IMAGE_MAX_PIXELS);
    J_COLOR_SPACE space = d->info.jpeg_color_space;
    if (space != JCS_GRAYSCALE && space != JCS_YCbCr && space != JCS_RGB)
        return asen_fail(ASEN_ERR_UNSUPPORTED, "JPEG with %d components, colour space %d",
                         d->info.num_components, (int)space);
    return ASEN_OK;
}

int asen_jpeg_size(const uint8_t *data, size_t n, int64_t *height, int64_t *width)
{
    *height = *width = 0;
    decoder d;
    decoder_init(&d);
    if (setjmp(d.escape)) {
        jpeg_destroy_decompress(&d.info);
        return d.status;
    }
    open_header(&d, data, n);
    int status = check_header(&d);
    if (status == ASEN_OK) {
        *height = d.info.image_height;
        *width = d.info.image_width;
    }
    jpeg_destroy_decompress(&d.info);
    return status;
}

static void decode_rows(decoder *d, uint8_t *out)
{
    d->info.out_color_space = JCS_RGB;
    jpeg_start_decompress(&d->info);
    size_t stride = (size_t)d->info.output_width * 3;
    while (d->info.output_scanline < d->info.output_height) {
        JSAMPROW rows[ROWS_AT_ONCE];
        JDIMENSION first = d->info.output_scanline, left = d->info.output_height - first;
        JDIMENSION count = left < ROWS_AT_ONCE ? left : ROWS_AT_ONCE;
        for (JDIMENSION r = 0; r < count; r++)
            rows[r] = out + (first + r) * stride;
        jpeg_read_scanlines(&d->info, rows, count);
    }
    jpeg_finish_decompress(&d->info);
}

int asen_jpeg_decode(const uint8_t *data, size_t n, uint8_t *out, int64_t height, int64_t width)
{
    decoder d;
    decoder_init(&d);
    if (setjmp(d.escape)) {
        jpeg_destroy_decompress(&d.info);
        return d.status;
    }
    open_header(&d, data, n);
    int status = check_header(&d);
    if (status == ASEN_OK && (d.info.image_height != height || d.info.image_width != width))
        status = asen_fail(ASEN_ERR_VALUE, "the buffer is for %lld x %lld pixels, the JPEG file has %u x %u",
                           (long long)width, (long long)height, d.info.image_width, d.info.image_height);
    if (status == ASEN_OK)
        decode_rows(&d, out);
    jpeg_destroy_decompress(&d.info);
    return status;
}
