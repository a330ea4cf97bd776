// android.media.ExifInterface, as far as the app code uses it: signatures only.
@file:Suppress("UNUSED_PARAMETER", "unused")

package android.media

class ExifInterface(path: String) {
    fun getAttributeInt(tag: String, otherwise: Int): Int = otherwise

    companion object {
        const val TAG_ORIENTATION = "Orientation"
        const val ORIENTATION_NORMAL = 1
    }
}
