#define _DEFAULT_SOURCE /* of mmap's MAP_ANONYMOUS */
#include "pages.h"

#if defined(_WIN32)
#include <windows.h>

size_t page_size(void)
{
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    return info.dwPageSize;
}

unsigned char *new_pages(size_t num_bytes)
{
    return VirtualAlloc(NULL, num_bytes, MEM_COMMIT | MEM_RESERVE, PAGE_READWRITE);
}

int guard_page(unsigned char *page)
{
    DWORD before;
    return VirtualProtect(page, page_size(), PAGE_NOACCESS, &before);
}

void free_pages(unsigned char *pages, size_t num_bytes)
{
    (void)num_bytes;
    VirtualFree(pages, 0, MEM_RELEASE);
}

#else
#include <sys/mman.h>
#include <unistd.h>

size_t page_size(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

unsigned char *new_pages(size_t num_bytes)
{
    void *const pages =
        mmap(NULL, num_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return pages == MAP_FAILED ? NULL : pages;
}

int guard_page(unsigned char *page)
{
    return mprotect(page, page_size(), PROT_NONE) == 0;
}

void free_pages(unsigned char *pages, size_t num_bytes)
{
    munmap(pages, num_bytes);
}
#endif
