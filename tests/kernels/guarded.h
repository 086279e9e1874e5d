/* Arrays that begin or end at a page which must not be touched. The address sanitizer does not watch
 * masked loads and stores of vectors; it watches the memory that the kernels allocate themselves. */
#include <stdlib.h>
#include <sys/mman.h>

static int at_end;                                  /* whether arrays end at the page, or begin there */

static void *guarded(size_t bytes)
{
    enum { PAGE = 1 << 16 };                        /* a multiple of any system's */
    size_t room = (bytes + PAGE - 1) / PAGE * PAGE;
    char *start = mmap(NULL, room + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED || (room && mprotect(start + PAGE, room, PROT_READ | PROT_WRITE))) abort();
    return start + PAGE + (at_end ? room - bytes : 0);
}
