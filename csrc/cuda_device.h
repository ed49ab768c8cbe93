/* Devices of the process: their contexts, and memory that is kept and used again.
 *
 * A device is opened at its first use and stays open: its primary context, which frameworks share, is retained for good.
 * Memory belongs to a stream: a block that was released is given to later calls in the same stream alone, whose order makes
 * that safe without waiting. When the device has no more, all unused blocks go back to the driver before a call fails.
 * Thread safety: everything here may be called from any thread; the device's context must be entered for calls of the driver. */
#ifndef TILEWRIGHT_CUDA_DEVICE_H
#define TILEWRIGHT_CUDA_DEVICE_H
#include "cuda_driver.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct tw_cuda_device {
  const tw_cuda_driver *driver; /* null: not opened */
  tw_cu_context context;
  int32_t number, handle;
  int32_t major, minor;       /* compute capability; 9.0 */
  int32_t emulated;
  int32_t lost;               /* the failure that made the context unusable, or 0 */
} tw_cuda_device;

/* The device, opened. */
int32_t tw_cuda_open_device(const tw_context *context, int32_t number, tw_cuda_device **device);

/* Makes the device's context the thread's, and puts the one before it back. A lost device is refused; tw_cuda_leave follows
 * TW_OK alone. */
int32_t tw_cuda_enter(tw_cuda_device *device, const tw_context *context, const char *subject);
void tw_cuda_leave(tw_cuda_device *device);

/* tw_cuda_report for a call on the device, which is lost when the error stays. */
int32_t tw_cuda_fail(tw_cuda_device *device, const tw_context *context, const char *subject, const char *what, int error);

/* A block for calls in `stream`, aligned to 512 bytes; the context is entered. `purpose`: what an error says it is for. */
int32_t tw_cuda_take(tw_cuda_device *device, const tw_context *context, void *stream, int64_t bytes, const char *subject,
                     const char *purpose, void **memory);
void tw_cuda_give(tw_cuda_device *device, void *memory); /* no driver call; null is allowed */

/* Gives the driver the unused blocks of a stream that is about to end; the context is entered. */
void tw_cuda_discard(tw_cuda_device *device, void *stream);

#ifdef __cplusplus
}
#endif
#endif
